"""What AirRep trains and what it trains on: labels from short fine-tunings, encoders, pooling and the ranking loss."""
