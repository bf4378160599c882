"""What one chapter needs and its notebook cannot hold. The core imports no study, and no study another."""
