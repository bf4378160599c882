"""Studies: what one chapter needs and its notebook cannot hold.

A study is a package of its own, named after its subject. The core (everything else in ``tda``) never imports a study,
and studies never import each other, so that a chapter can be changed or taken out with its study and nothing else.
"""
