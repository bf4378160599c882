"""Of chapters 13 and 53: corpora with planted leaks, who is suspected of one, and models of a few chosen documents."""
