"""Chapter 51: questions and replies with two planted, harmless behaviours, and who finds the documents behind them."""
