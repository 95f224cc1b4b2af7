"""Rules and their outcomes.

A rule is a function with a level and a sentence. It returns when the server keeps it, and raises Wrong, Missing or
Untried when not. "must" and "should" are the document's words; "may" is a feature that a server is free to leave out.
"""

RULES = []


class Wrong(Exception):
    """The server breaks the rule; the text says what it did."""


class Missing(Exception):
    """The server does not offer what the rule is about, as it may."""


class Untried(Exception):
    """The rule cannot be tried here: no permission to write, an export that is too small ..."""


class Rule:
    def __init__(self, name, level, sentence, function):
        self.name, self.level, self.sentence, self.function = name, level, sentence, function


def rule(level, sentence):
    """Registers a function as a rule. Its name, with dashes, is the rule's name."""
    def register(function):
        RULES.append(Rule(function.__name__.replace("_", "-"), level, sentence, function))
        return function
    return register


def expect(condition, text):
    if not condition:
        raise Wrong(text)
