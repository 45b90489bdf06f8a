"""One file per model family: how to build or load it, where its heads live."""
