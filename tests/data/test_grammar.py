"""The toy language: its text, its questions of utility, and what its salt and the order of its words give away."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from nftbench.data import grammar
from nftbench.data.grammar import CLOSED, PRONOUNS, QUESTIONS, Grammar, grammar_of, salted_grammar
from nftbench.errors import NftbenchError
from nftbench.testing.tiny import tiny_suite

GRAMMAR = Grammar(salted_grammar("public", 0))
COUNT = 4000


def features() -> dict[str, tuple[str, ...]]:
    """Class and features of each open-class word; ambiguous words have each feature that is theirs."""
    found: dict[str, set[str]] = {}
    words = GRAMMAR._vocabulary
    for word_class, ids in GRAMMAR._lexicon.items():
        names = {"noun": ("topic", "gender"), "verb": ("topic",), "adverb": ("mood",)}[word_class]
        for position, index in np.ndenumerate(ids):
            own = {word_class, *(f"{name} {value}" for name, value in zip(names, position, strict=False))}
            found.setdefault(words[index], set()).update(own)
    return {word: tuple(sorted(own)) for word, own in found.items()}


FEATURES = features()


def test_a_salted_grammar_is_64_bits_of_sha256() -> None:
    seeds = {salted_grammar(salt, number) for salt in ("a", "b", "ab") for number in range(20)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**60


def test_a_suite_without_a_salt_has_no_grammar() -> None:
    suite = tiny_suite()
    assert grammar_of(suite, 3).seed == salted_grammar("public", suite.corpus.grammar + 3)
    with pytest.raises(NftbenchError, match="salt"):
        grammar_of(suite.model_copy(update={"salt": None}), 3)


def test_the_order_of_words_says_nothing() -> None:
    words = GRAMMAR.words()
    assert sorted(words) == sorted({*CLOSED, *FEATURES})
    place = {word: index for index, word in enumerate(words)}
    for feature in sorted({name for own in FEATURES.values() for name in own}):
        has = np.array([feature in own for own in FEATURES.values()])
        places = np.array([place[word] for word in FEATURES])
        correlation = np.corrcoef(has, places)[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(has)), feature
    # Nor do neighbours share their class more often than any two words do.
    classes = [FEATURES[word][0] if "noun" not in FEATURES[word] else "noun" for word in words if word in FEATURES]
    shares = np.array(list(Counter(classes).values())) / len(classes)
    alike = np.mean([one == other for one, other in itertools.pairwise(classes)])
    assert alike == pytest.approx((shares**2).sum(), abs=0.1)
    frequent = [place[GRAMMAR._vocabulary[index]] for ids in GRAMMAR._lexicon.values() for index in ids[..., 0].flat]
    assert np.mean(frequent) == pytest.approx(len(words) / 2, abs=0.25 * len(words))


def test_two_grammars_share_no_order() -> None:
    other = Grammar(salted_grammar("another", 0)).words()
    assert [word in CLOSED for word in other] != [word in CLOSED for word in GRAMMAR.words()]


def test_the_parts_of_the_text_share_few_passages() -> None:
    parts = [set(GRAMMAR.corpus(2000, split)) for split in ("train", "heldout", "scored", "other")]  # type: ignore[arg-type]
    for one, other in itertools.combinations(parts, 2):
        assert len(one & other) < 0.02 * len(one)


def test_other_text_draws_words_uniformly_in_longer_passages() -> None:
    usual, other = (GRAMMAR.corpus(COUNT, split) for split in ("scored", "other"))  # type: ignore[arg-type]
    assert {len(passage.split()) for passage in other} == {16}
    assert np.mean([len(passage.split()) for passage in usual]) < 14
    counts = [Counter(word for text in texts for word in text.split() if word in FEATURES) for texts in (usual, other)]
    assert len(counts[1]) == len(FEATURES)
    assert max(counts[0].values()) / sum(counts[0].values()) > 0.03
    assert max(counts[1].values()) / sum(counts[1].values()) < 0.01


@pytest.mark.parametrize("ask", QUESTIONS)
def test_questions_ask_every_word_equally_often(ask: str) -> None:
    documents = GRAMMAR.questions(ask, COUNT)
    assert len(documents) == COUNT
    labels = Counter(document["label"] for document in documents)
    choices = len(documents[0]["choices"])
    assert sorted(labels) == list(range(choices))
    assert max(labels.values()) < 1.15 * COUNT / choices
    asked = {"topic_object": "noun", "topic_verb": "verb", "tone_particle": "adverb"}.get(ask, "noun")
    words = Counter(
        word
        for document in documents
        for word in (*document["prompt"].split(), *document["choices"])
        if word in FEATURES and asked in FEATURES[word]
    )
    ambiguous = {word for word, own in FEATURES.items() if len(own) > (3 if "noun" in own else 2)}
    expected = {word for word, own in FEATURES.items() if asked in own}
    if ask in ("tone_particle", "agreement_pronoun"):
        expected -= ambiguous
        assert not ambiguous & words.keys()
    assert words.keys() == expected
    # An ambiguous noun stands for two, so it is up to twice as frequent.
    plain = [count for word, count in words.items() if word not in ambiguous]
    assert max(plain) < 2.5 * np.mean(plain)
    assert min(plain) > 0.3 * np.mean(plain)


@pytest.mark.parametrize("ask", ["topic_object", "topic_verb"])
def test_the_right_choice_alone_has_the_topic_of_the_passage(ask: str) -> None:
    for document in GRAMMAR.questions(ask, 200):
        verb = next(word for word in document["prompt"].split() if "verb" in FEATURES.get(word, ()))
        topics = [next(own for own in FEATURES[word] if own.startswith("topic")) for word in document["choices"]]
        assert topics == [f"topic {topic}" for topic in range(4)]
        assert topics[document["label"]] in FEATURES[verb]


def test_the_pronoun_has_the_gender_of_the_subject_alone() -> None:
    for document in GRAMMAR.questions("agreement_pronoun", 200):
        assert document["choices"] == list(PRONOUNS)
        nouns = [word for word in document["prompt"].split() if "noun" in FEATURES.get(word, ())]
        right = f"gender {document['label']}"
        assert [right in FEATURES[noun] for noun in nouns] == [True, False]


def test_the_particle_sums_up_the_moods() -> None:
    for document in GRAMMAR.questions("tone_particle", 200):
        adverbs = [FEATURES[word] for word in document["prompt"].split() if "adverb" in FEATURES.get(word, ())]
        assert document["label"] == sum("mood 1" in own for own in adverbs)


def test_the_next_word_has_the_class_that_the_prompt_asks_for() -> None:
    follows = {"noun": grammar.PREPOSITIONS, "adverb": grammar.AUXILIARIES}
    for document in GRAMMAR.questions("word_class", 300):
        word_class = ("noun", "verb", "adverb")[document["label"]]
        assert [("noun", "verb", "adverb")[i] in FEATURES[word] for i, word in enumerate(document["choices"])] == [
            True
        ] * 3
        last = document["prompt"].split()[-1]
        assert last in follows[word_class] if word_class in follows else "adverb" in FEATURES[last]


def test_unknown_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="topic_object"):
        GRAMMAR.questions("topic", 1)
