# %% 1 solution
before = lexical["people"]
overrides = {"testbeds": {"people": {"corpus": {"name_sharing": 0.0}}}}
rerun("chapter = Chapter(")
rerun("testbeds = chapter.beds")
rerun("lexical, chance = {}, {}")
easier = lexical["people"] - before
# %% 1 wrong
before = lexical["people"]
overrides = {"testbeds": {"people": {"corpus": {"name_sharing": 0.0}}}}
rerun("lexical, chance = {}, {}")  # the testbeds are still the old ones
easier = lexical["people"] - before
# %% 2 solution
repeats = {}
for author in sorted(set(testbeds["authors"].documents["entity"])):
    texts_of = [d["text"] for d in testbeds["authors"].documents if d["entity"] == author][:20]
    repeats[author] = np.mean([overlap(texts_of[i], texts_of[j], 3) for i in range(len(texts_of)) for j in range(i)])
most = max(repeats, key=repeats.get)
# %% 2 wrong
repeats = {}
for author in sorted(set(testbeds["authors"].documents["entity"])):
    texts_of = [d["text"] for d in testbeds["authors"].documents if d["entity"] == author][:20]
    repeats[author] = np.mean([overlap(a, b, 3) for a in texts_of for b in texts_of])  # with itself, too
most = max(repeats, key=repeats.get)
# %% 3 solution
mine = "she dotes on her newt every blessed morning"
known = testbeds["people"].tokenizer.get_vocab()
unknown = [word for word in mine.split() if word not in known]
# %% 3 wrong
mine = "she dotes on her xylophone and newt every blessed morning"
used = {word for text in testbeds["people"].documents["text"] for word in text.split()}
unknown = [word for word in mine.split() if word not in used]  # not used in a document is not unknown
