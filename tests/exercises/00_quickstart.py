# %% 1 solution
small, large = (tda.attribute("bgo", task, testbed.train, asked, step=size)[0] for size in (0.01, 1))
shared = len({*(-small).argsort()[:5]} & {*(-large).argsort()[:5]})
# %% 1 wrong
small, large = (tda.attribute("bgo", task, testbed.train, asked, step=size)[0] for size in (0.1, 1))  # not small
shared = len({*(-small).argsort()[:5]} & {*(-large).argsort()[:5]})
# %% 2 solution
pronoun, above = states & (np.array(testbed.documents["planted"]) == "pronoun"), {}
for name in ("bgo", "gradient_dot", "bm25"):
    s = tda.attribute(name, task, testbed.train, queries)
    above[name] = np.mean([(s[q] > s[q, i]).mean() for q, i in zip(*pronoun.nonzero(), strict=True)])
# %% 2 wrong
pronoun, above = states & (np.array(testbed.documents["planted"]) == "pronoun"), {}
for name in ("bgo", "gradient_dot", "bm25"):
    s = tda.attribute(name, task, testbed.train, queries)
    above[name] = np.mean([(s[q] < s[q, i]).mean() for q, i in zip(*pronoun.nonzero(), strict=True)])  # the share below
# %% 3 solution
import json
import tempfile
from pathlib import Path

lines = [*testbed.documents["text"], testbed.documents["text"][0]]
path = Path(tempfile.mkdtemp()) / "my_texts.jsonl"
path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines), encoding="utf-8")
sizes = {"corpus": {"vocabulary": 512}, "model": {"context": 128}}
own = tda.testbeds.load(str(path), overrides={"testbeds": {"my_texts": sizes}})
i = list(own.documents["text"]).index(lines[0])
found = tda.attribute("gradient_cosine", models.load_task(own), own.train, take(own.train, [i]))[0]
# %% 3 wrong
import json
import tempfile
from pathlib import Path

lines = [*testbed.documents["text"], testbed.documents["text"][0]]
path = Path(tempfile.mkdtemp()) / "my_texts.jsonl"
path.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines), encoding="utf-8")
sizes = {"corpus": {"vocabulary": 512}, "model": {"context": 128}}
own = tda.testbeds.load(str(path), overrides={"testbeds": {"my_texts": sizes}})
i = list(own.documents["text"]).index(lines[0])
found = tda.attribute("gradient_cosine", models.load_task(own), own.train, take(own.train, [i + 1]))[
    0
]  # another document
