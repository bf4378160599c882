"""Copy the paper profile's retraining banks and their queries to data/banks, where they are committed."""

import tda.config
import tda.testbeds
from tda import bank

for name in tda.config.load("paper")["testbeds"]:
    for path in bank.ship(tda.testbeds.load(name, "paper")):
        print(path.relative_to(tda.config.ROOT), path.stat().st_size, "bytes")
