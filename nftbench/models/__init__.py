"""Networks: built, loaded and saved in Hugging Face's format, with the architectures that transformers lacks."""
