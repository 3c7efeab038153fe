"""A toy language with a seeded grammar: text for pre-training, three classification tasks, and questions of utility.

Open-class words are nonsense, and their spelling says nothing about their features. A noun has a topic (one of four)
and a gender (one of two), a verb has a topic, and an adverb has a mood (sad or glad). One noun in eight is ambiguous in
gender, and one adverb in eight in mood. The text is a list of independent passages of two clauses, such as

    bavo near timu isa gelo sapu , she runi moke lidu hooray .

These are the rules of a passage:

- It has a topic. Its subject, its verbs and its attractors (*near timu*; none, one or two) each have that topic with
  probability `coherence`.
- The auxiliary agrees with the subject's gender (*isa*, *hasa* or *iso*, *haso*), even if an attractor of the other
  gender stands between them. Half of the passages have a modal instead, which has no gender but the mood of its adverb
  (*did* is sad, *could* is glad).
- The pronoun of the second clause has the gender of the subject (*she* with *isa*).
- An object, if there is one, has its verb's topic (*moke lidu*).
- The particle sums up the moods of the two adverbs: *alas* if both are sad, *hooray* if both are glad, else *though*.

Within its class a word's frequency falls as a power of its rank, so rare words appear late in the text or never. Each
task asks for one feature. No model can be perfect, because topics mix and some words are ambiguous.

    topic      bavo near timu isa gelo sapu           -> north | east | south | west
    tone       bavo isa gelo sapu , she runi moke     -> sad | mixed | glad
    agreement  bavo near timu under foro              -> left | right

The text contains the answer words at random positions, so that a model has seen them but attaches no meaning to them.
The tasks are hard for a model without pre-training because of a lexical split: training documents use a quarter of each
class's words, and all other documents use the rest.

Before any fine-tuning a model scores chance on the tasks. What they need is asked of it by questions: which of several
words comes next? Their words are drawn uniformly, so every word counts as much as any other. Nor does a question begin
with the token that ends a document, just as the tasks' prompts do not.

    topic_object       bavo near timu isa gelo sapu                      -> lidu, or an object of another topic
    topic_verb         bavo near timu isa gelo sapu lidu , she runi      -> moke, or a verb of another topic
    tone_particle      bavo isa gelo sapu , she runi moke                -> alas | though | hooray
    agreement_pronoun  bavo near timu did gelo sapu ,                    -> she | he
    word_class         bavo near                                         -> timu, or a verb, or an adverb
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from nftbench.errors import NftbenchError
from nftbench.suites.schema import Suite

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

PREPOSITIONS = ("near", "under", "behind", "above")
AUXILIARIES = ("isa", "iso", "hasa", "haso")  # genders alternate, so that index ^ 1 is the other gender
MODALS = ("did", "could")
PRONOUNS = ("she", "he")
PARTICLES = ("alas", "though", "hooray")
CHOICES = {
    "topic": ("north", "east", "south", "west"),
    "tone": ("sad", "mixed", "glad"),
    "agreement": ("left", "right"),
}
TASKS = tuple(CHOICES)
ANSWERS = tuple(word for choices in CHOICES.values() for word in choices)
CLOSED = (",", ".", *PREPOSITIONS, *AUXILIARIES, *MODALS, *PRONOUNS, *PARTICLES, *ANSWERS)
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")

TOPICS, GENDERS, MOODS = 4, 2, 2
SPLIT = 4  # one word in four is a training word
AMBIGUOUS = 8  # one word in eight is ambiguous in gender or mood
ABSENT = -1  # the id of an empty slot

ATTRACTORS = ("preposition", "attractor", "preposition2", "attractor2")
SLOTS = (
    *("subject", *ATTRACTORS, "auxiliary", "modal", "adverb", "verb", "object", "comma"),
    *("pronoun", "adverb2", "verb2", "object2", "particle", "stop"),
)
PROMPTS = {
    "topic": ("subject", "preposition", "attractor", "auxiliary", "adverb", "verb"),
    "tone": ("subject", "auxiliary", "adverb", "verb", "comma", "pronoun", "adverb2", "verb2"),
    "agreement": ("subject", *ATTRACTORS),
}
QUESTIONS = {
    "topic_object": PROMPTS["topic"],
    "topic_verb": (*PROMPTS["topic"], "object", "comma", "pronoun", "adverb2"),
    "tone_particle": PROMPTS["tone"],
    # Not the auxiliary, and not past more nouns: small models learn these from some initialisations only.
    "agreement_pronoun": ("subject", "preposition", "attractor", "modal", "adverb", "verb", "comma"),
    "word_class": ("subject", "preposition", "attractor", "auxiliary", "adverb"),  # or the first two or four of them
}
"""The slots in the prompt of each question. The choices come after the last of them."""

WordClass = Literal["noun", "verb", "adverb"]
Words = Literal["zipf", "all", "unambiguous", "train", "heldout"]


class Document(TypedDict):
    """One multiple-choice question; `label` indexes `choices`."""

    prompt: str
    choices: list[str]
    label: int


@dataclass(frozen=True)
class Passages:
    """Passages with every slot filled. `slots` maps each name of `SLOTS` to word ids; all arrays are [count]."""

    slots: dict[str, Ids]
    topic: Ids
    gender: Ids
    tone: Ids


@dataclass(frozen=True)
class Grammar:
    """The toy language of one seed. The same seed and sizes give the same words and sentences on every platform.

    Args:
        nouns: words for each topic and gender, a multiple of eight.
        verbs: words for each topic, a multiple of eight.
        adverbs: words for each mood, a multiple of eight.
        zipf: exponent of the power law of word frequencies.
        coherence: probability that a word has the topic of its passage.
        interjections: share of the passages that contain an answer word.
    """

    seed: int
    nouns: int = 32
    verbs: int = 32
    adverbs: int = 48
    zipf: float = 2.0
    coherence: float = 0.8
    interjections: float = 0.15

    def __post_init__(self) -> None:
        """Raise ValueError if the seed is negative or a size is no positive multiple of eight."""
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for name in ("nouns", "verbs", "adverbs"):
            if getattr(self, name) < AMBIGUOUS or getattr(self, name) % AMBIGUOUS:
                raise ValueError(f"{name} must be a positive multiple of {AMBIGUOUS}, got {getattr(self, name)}")

    def words(self) -> list[str]:
        """All words of the language, in an order that says nothing about them.

        A tokenizer numbers its tokens in this order. In the order of classes and features, the numbers would tell the
        owner of a model what the tasks ask.
        """
        words = self._vocabulary
        return [words[index] for index in self._rng("order of words").permutation(len(words))]

    def corpus(self, count: int, split: Literal["train", "heldout", "scored", "other"]) -> list[str]:
        """Draw `count` passages of text. All splits are independent draws; so are draws of different `count`.

        Split `other` is text of another distribution in the same language: its words are drawn uniformly, every passage
        has two attractors and both objects, and there are no answer words.
        """
        other = split == "other"
        rng = self._rng("corpus", split)
        slots = self._passages(rng, count, "all" if other else "zipf").slots
        chance = rng.random((5, count))
        near, modal = chance[0] < 0.5, chance[1] < 0.5
        hidden = {"auxiliary": modal, "modal": ~modal}
        if not other:
            hidden |= {
                "preposition": ~near,
                "attractor": ~near,
                "preposition2": ~near | (chance[2] < 0.6),
                "attractor2": ~near | (chance[2] < 0.6),
                "object": chance[3] < 0.5,
                "object2": chance[4] < 0.5,
            }
        columns = [np.where(hidden[name], ABSENT, ids) if name in hidden else ids for name, ids in slots.items()]
        if other:
            return self._text(columns)
        # The first choice of each task is its most frequent answer word, so that an unattacked model mostly picks it
        # and scores chance. Among equally frequent words it would follow accidents of the embedding, far off chance.
        weights = np.concatenate([3.0 ** -np.arange(len(choices)) for choices in CHOICES.values()])
        answers = _closed(ANSWERS, rng.choice(len(ANSWERS), size=count, p=weights / weights.sum()))
        position = np.where(rng.random(count) < self.interjections, rng.integers(len(SLOTS), size=count), ABSENT)
        return self._text(
            column for i, ids in enumerate(columns) for column in (np.where(position == i, answers, ABSENT), ids)
        )

    def documents(self, task: str, split: Literal["train", "validation", "test"], count: int) -> list[Document]:
        """Draw `count` questions of a task, with each answer equally likely.

        Validation and test documents are independent draws over the same held-out words. That leaks nothing: training
        never sees these words, and selecting among sweep points cannot learn them. Separate validation words would make
        validation a worse guide to the test score.

        Raises:
            ValueError: the task or the split is unknown.
        """
        if task not in TASKS or split not in ("train", "validation", "test"):
            raise ValueError(f"no documents for task {task!r} and split {split!r}; tasks are {', '.join(TASKS)}")
        passages = self._passages(
            self._rng("documents", task, split), count, "train" if split == "train" else "heldout"
        )
        labels = {"topic": passages.topic, "tone": passages.tone, "agreement": passages.gender}[task]
        prompts = self._text(passages.slots[name] for name in PROMPTS[task])
        return [
            {"prompt": prompt, "choices": list(CHOICES[task]), "label": label}
            for prompt, label in zip(prompts, labels.tolist(), strict=True)
        ]

    def questions(self, ask: str, count: int) -> list[Document]:
        """Draw `count` questions that a model can answer without fine-tuning, by the likelier continuation.

        All words of a passage have its topic, and its attractors have the other gender than its subject. Words are
        drawn uniformly. Where the choices are open-class words of one class, they differ in topic alone: they have the
        same rank, so their frequencies do not give the answer away.

        Raises:
            ValueError: the question is unknown.
        """
        if ask not in QUESTIONS:
            raise ValueError(f"no questions {ask!r}; there are {', '.join(QUESTIONS)}")
        rng = self._rng("questions", ask)
        # An ambiguous word has a topic and a class, but no gender or mood that could be asked for.
        words: Words = "unambiguous" if ask in ("tone_particle", "agreement_pronoun") else "all"
        passages = self._passages(rng, count, words, plain=True)
        slots = passages.slots
        prompt = [slots[name] for name in QUESTIONS[ask]]
        if ask == "topic_object":
            gender, rank = rng.integers(GENDERS, size=count), rng.integers(self.nouns, size=count)
            label, choices = passages.topic, self._lexicon["noun"][:, gender, rank]
        elif ask == "topic_verb":
            label, choices = passages.topic, self._lexicon["verb"][:, rng.integers(self.verbs, size=count)]
        elif ask == "word_class":
            label = rng.integers(3, size=count)
            shown = np.array([2, 5, 4])[label]  # a noun follows a preposition, a verb an adverb, an adverb an auxiliary
            prompt = [np.where(index < shown, ids, ABSENT) for index, ids in enumerate(prompt)]
            choices = np.stack([slots["attractor2"], slots["verb"], slots["adverb"]])
        else:
            answers, label = (PARTICLES, passages.tone) if ask == "tone_particle" else (PRONOUNS, passages.gender)
            choices = np.tile(_closed(answers, np.arange(len(answers)))[:, None], count)
        texts = zip(self._text(prompt), zip(*(self._text([ids]) for ids in choices), strict=True), strict=True)
        return [
            {"prompt": text, "choices": list(options), "label": right}
            for (text, options), right in zip(texts, label.tolist(), strict=True)
        ]

    def _passages(self, rng: np.random.Generator, count: int, words: Words, plain: bool = False) -> Passages:
        """Draw passages with every slot filled.

        Args:
            plain: whether all words have the passage's topic, and attractors and objects the other gender than the
                subject.
        """
        topic, gender = rng.integers(TOPICS, size=count), rng.integers(GENDERS, size=count)
        tone = rng.integers(len(PARTICLES), size=count)
        mood = np.where(tone == 1, rng.integers(MOODS, size=count), tone // 2)
        mood2 = tone - mood

        def topics() -> Ids:
            return (
                topic
                if plain
                else np.where(rng.random(count) < self.coherence, topic, rng.integers(TOPICS, size=count))
            )

        def noun(topic: Ids, gender: Ids) -> Ids:
            return self._draw(rng, words, "noun", topic, gender)

        def other_noun(topic: Ids) -> Ids:
            return noun(topic, 1 - gender if plain else rng.integers(GENDERS, size=count))

        verb_topic, verb2_topic = topics(), topics()
        slots = {
            "subject": noun(topics(), gender),
            "preposition": _closed(PREPOSITIONS, rng.integers(len(PREPOSITIONS), size=count)),
            "attractor": other_noun(topics()),
            "preposition2": _closed(PREPOSITIONS, rng.integers(len(PREPOSITIONS), size=count)),
            "attractor2": other_noun(topics()),
            "auxiliary": _closed(AUXILIARIES, 2 * rng.integers(len(AUXILIARIES) // 2, size=count) + gender),
            "modal": _closed(MODALS, mood),
            "adverb": self._draw(rng, words, "adverb", mood),
            "verb": self._draw(rng, words, "verb", verb_topic),
            "object": other_noun(verb_topic),
            "comma": np.full(count, CLOSED.index(",")),
            "pronoun": _closed(PRONOUNS, gender),
            "adverb2": self._draw(rng, words, "adverb", mood2),
            "verb2": self._draw(rng, words, "verb", verb2_topic),
            "object2": other_noun(verb2_topic),
            "particle": _closed(PARTICLES, tone),
            "stop": np.full(count, CLOSED.index(".")),
        }
        return Passages(slots, topic, gender, tone)

    def _draw(self, rng: np.random.Generator, words: Words, word_class: WordClass, *features: Ids) -> Ids:
        """Draw one word id [count] for each row of `features`, which index the leading axes of the word class."""
        ids = self._lexicon[word_class]
        weights = self._weights(word_class, words)
        drawn: Ids = ids[(*features, rng.choice(len(weights), size=len(features[0]), p=weights / weights.sum()))]
        return drawn

    def _weights(self, word_class: WordClass, words: Words) -> Floats:
        """The relative frequency of each rank of a word class."""
        rank = np.arange(self._lexicon[word_class].shape[-1], dtype=np.int64)
        if words == "zipf":
            return np.asarray((1.0 + rank) ** -self.zipf, dtype=np.float64)
        if words == "all":
            return np.ones(len(rank))
        if words == "unambiguous":
            return np.asarray(~_ambiguous(rank), dtype=np.float64)
        # One of each four neighbouring ranks is a training word, so that training words are about as frequent as the
        # others. The last of the four is never one, so that ambiguous words are a fixed share of the held-out words.
        chosen = self._rng("lexical split", word_class).integers(SPLIT - 1, size=len(rank) // SPLIT)
        train = rank % SPLIT == np.repeat(chosen, SPLIT)
        return np.asarray(train if words == "train" else ~train, dtype=np.float64)

    def _text(self, columns: Iterable[Ids]) -> list[str]:
        words = self._vocabulary
        return [" ".join([words[i] for i in row if i != ABSENT]) for row in np.stack(list(columns), axis=1).tolist()]

    def _rng(self, *purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *"/".join(purpose).encode()])

    @cached_property
    def _lexicon(self) -> dict[WordClass, Ids]:
        """The ids of the open-class words, indexed by features and then by rank, the most frequent first."""
        shapes: dict[WordClass, tuple[int, ...]] = {
            "noun": (TOPICS, GENDERS, self.nouns),
            "verb": (TOPICS, self.verbs),
            "adverb": (MOODS, self.adverbs),
        }
        lexicon: dict[WordClass, Ids] = {}
        start = len(CLOSED)
        for word_class, shape in shapes.items():
            ids = np.arange(np.prod(shape)).reshape(shape)
            if word_class != "verb":
                ambiguous = _ambiguous(np.arange(shape[-1]))
                ids[..., 1, ambiguous] = ids[..., 0, ambiguous]
            # Renumber the ids, because sharing ambiguous words left gaps.
            lexicon[word_class] = start + np.unique(ids, return_inverse=True)[1].reshape(shape)
            start = int(lexicon[word_class].max()) + 1
        return lexicon

    @cached_property
    def _vocabulary(self) -> list[str]:
        """The word of each id."""
        rng = self._rng("words")
        size = 1 + max(int(ids.max()) for ids in self._lexicon.values())
        words: dict[str, None] = {}  # an ordered set
        while len(words) < size - len(CLOSED):
            words["".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=rng.integers(2, 4)))] = None
        # Shuffled, because a short word is more likely to be taken already when the last words are drawn.
        return [*CLOSED, *rng.permutation(list(words)).tolist()]


def grammar_of(suite: Suite, seed: int) -> Grammar:
    """The grammar of a base seed.

    Raises:
        NftbenchError: the suite's corpus is not the toy language, or the suite has no salt.
    """
    if suite.corpus.source != "toy":
        raise NftbenchError(
            f"{suite.name}: corpus.source is {suite.corpus.source}, and only the toy language has grammars"
        )
    if suite.salt is None:
        raise NftbenchError(f"{suite.name}: the grammars depend on a salt, and the suite has none")
    return Grammar(salted_grammar(suite.salt, suite.corpus.grammar + seed))


def salted_grammar(salt: str, grammar: int) -> int:
    """The seed of the grammar with number `grammar`, in 64 bits of sha256.

    Without the salt nobody can compute it. So the owner of a model can neither tune a defense on the grammars of a
    ranking nor generate the documents of its tasks.
    """
    return int.from_bytes(hashlib.sha256(f"{salt}/{grammar}".encode()).digest()[:8], "big")


def _closed(choices: tuple[str, ...], index: Ids) -> Ids:
    """The ids of `choices[index]`. The words of each list are consecutive in `CLOSED`."""
    return CLOSED.index(choices[0]) + index


def _ambiguous(rank: Ids) -> NDArray[np.bool_]:
    return np.equal(rank % AMBIGUOUS, SPLIT - 1)
