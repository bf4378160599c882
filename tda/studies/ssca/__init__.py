"""Chapter 52: regions whose removal flips a prediction, and what training on such images does."""
