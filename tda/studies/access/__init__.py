"""What chapter 15 stands on: proxies of a model that is not open, and how well their scores fit the model itself."""
