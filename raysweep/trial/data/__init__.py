"""The data of a trial: corpora, tokenizers, token windows, sentences and images."""
