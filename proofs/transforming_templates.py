"""Generates chat templates that transform the text of the data, and text that they turn into control tokens.

A template writes every content through a chain of transformations, and its own control tokens by a random expression.
The attacks are preimages: text that the chain makes a control token of.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from template_attacks import Attacker, Subject
from templates import NamedTemplate, bundled_templates

TEMPLATE = """{%- macro written(text) %}{{ text }}{% endmacro %}
{%- macro framed() %}{{ caller() }}{% endmacro %}
{%- macro between(text) %}{% call framed() %}{{ text }}{% endcall %}{% endmacro %}
{%- set start, end = 'im_start', 'im_end' %}
{%- set ns = namespace(start='<|' ~ start ~ '|>', end='<|' ~ end ~ '|>') %}
{%- for m in messages %}
{%- set text = CONTENT %}
{{- OPENING }}{{ m.role + '\\n' }}{{ m.reasoning_content or '' }}{{ text }}
{{- m.tool_calls | tojson if m.tool_calls else '' }}{{ tools | tojson if tools and loop.first else '' }}
{{- CLOSING }}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ OPENING }}{{ 'assistant\\n' }}{% endif %}
"""

ASSEMBLED = ("'<|NAME|>'", "'<|' ~ 'NAME' ~ '|>'", "'<|' + NOUN + '|>'", "'<|%s|>' % NOUN", "'<|{}|>'.format(NOUN)",
             "'<|{0}|{1}'.format(NOUN, '>')", "['<|', NOUN, '|>'] | join", "'|'.join(['<', NOUN, '>'])", "ns.NOUN",
             "'x<|NAME|>y'[1:-1]", "'<|NAME|>' | upper | lower", "written('<|NAME|>')", "'<|x|>'.replace('x', NOUN)",
             "('<|NAME|> ' | trim)", "'a,<|NAME|>'.split(',')[1]", "('<' ~ '|') ~ (NOUN ~ '|' ~ '>')",
             "'<|NAME|>'[:4] ~ '<|NAME|>'[4:]", "{'token': '<|NAME|>'}.token", "('<|NAME|>' if true else '')",
             "'<|NAME|>' | list | join", "'>|' | reverse | reverse | replace('>|', '<|') ~ 'NAME|>'")
"""How a template may write a control token; NOUN is a variable that holds its NAME."""


MARKS = ("&#983042;", "\\U000f0002", "\U000f0002", "983042")
"""A private-use character, spelled so that a template may make it."""


class Transformation(NamedTuple):
    """An expression of X, and the text that it turns into a given one."""

    expression: str
    preimage: Callable[[str], str]


def _same(text: str) -> str:
    return text


def _hashed(text: str) -> str:
    return text[:3] + "#" + text[3:]


def _inside(text: str) -> str:
    return text[2:-2] if text.startswith("<|") and text.endswith("|>") else text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


TRANSFORMATIONS = (
    Transformation("X | striptags", _escaped),
    Transformation("X.replace('[[', '<|').replace(']]', '|>')",
                   lambda text: text.replace("<|", "[[").replace("|>", "]]")),
    Transformation("X | replace('~', '|')", lambda text: text.replace("|", "~")),
    Transformation("X | replace('#', '')", _hashed),
    Transformation("X | replace('#', '<|im_end|>')", lambda text: "#"),
    Transformation("X | replace('#', eos_token)", lambda text: "#"),
    Transformation("X.encode('ascii', 'backslashreplace').decode('unicode_escape')",
                   lambda text: text.replace("<", "\\x3c").replace("|", "\\u007c")),
    Transformation("('<|%s|>' % X if '#' in X else X)", lambda text: "#"),
    Transformation("'<|%s|>' % X", _inside),
    Transformation("'<|{}|>'.format(X)", _inside),
    Transformation("'<|{0.content}|>'.format({'content': X})", _inside),
    Transformation("('<|%s|>' | format(X))", _inside),
    Transformation("['<|', X, '|>'] | join", _inside),
    Transformation("'<|' ~ X ~ '|>'", _inside),
    Transformation("'|'.join(['<', X, '>'])", _inside),
    Transformation("'<' ~ '|' ~ X", lambda text: text[2:]),
    Transformation("'<' + X", lambda text: text[1:]),
    Transformation("X + '>'", lambda text: text[:-1]),
    Transformation("X ~ 'm_end|>'", lambda text: "<|i"),
    Transformation("'%c' % 60 ~ X", lambda text: text[1:]),
    Transformation("'%c' % (X | length) ~ X", lambda text: text[1:] + " " * (60 - len(text[1:]))),
    Transformation("(X.split('#') | join)", _hashed),
    Transformation("(X.split('#') | join('<|im_end|>'))", lambda text: "#"),
    Transformation("'<|im_end|>'.join(X.split('#'))", lambda text: "#"),
    Transformation("(X.lower() if '|' in X else X)", str.upper),
    Transformation("(X[::-1] if '|' in X else X)", lambda text: text[::-1]),
    Transformation("(X | reverse | reverse)", _same),
    Transformation("('12' ~ X)[2:]", _same),
    Transformation("(X ~ '12')[:-2]", _same),
    Transformation("(X | list | join)", _same),
    Transformation("(X | trim)", _same),
    Transformation("(X | indent)", _same),
    Transformation("written(X)", _same),
    Transformation("between(X)", _same),
    Transformation("('%s' % X)", _same),
    Transformation("(X | format('<|im_end|>') if '%s' in X else X)", lambda text: "%s"),
    Transformation("(X.format('<|im_end|>') if '{}' in X else X)", lambda text: "{}"),
    Transformation("(X.join(['<|im_', 'end|>']) if '#' not in X else X) ~ X", lambda text: ""),
    Transformation("'<|im_END|>'.replace('END', X)", lambda text: "end"),
    Transformation("'<|im_end|>'.replace('im_end', X)", _inside),
    Transformation("(X | safe)", _same),
    Transformation("(X | string)", _same),
    Transformation("(X | default('none', true))", _same),
    Transformation("(X | truncate(999))", _same),
    Transformation("((X | batch(3) | map('join') | list) | join)", _same),
    Transformation("(X.partition('#') | join)", _hashed),
    Transformation("(X.partition('<|im_end|>') | join)", _same),
    Transformation("(X.rpartition(eos_token) | join)", _same),
    Transformation("X % '<|im_end|>' if '%s' in X else X", lambda text: "%s"),
    Transformation("('%' ~ X) % '<|im_end|>' if X == 's' else X", lambda text: "s"),
    Transformation("X % ('<|im_end|>',) if '%s' in X else X", lambda text: "%s"),
    Transformation("(X.format_map({'a': '<|im_end|>'}) if '{a}' in X else X)", lambda text: "{a}"),
    Transformation("(X.translate({35: '<|', 36: '|>'}))",
                   lambda text: text.replace("<|", "#").replace("|>", "$")),
    Transformation("('<|im_end|>'[:4] ~ X)", lambda text: text[4:]),
    Transformation("'<|im_' ~ X.replace('#', '') ~ 'end|>'", lambda text: "#"),
    Transformation("'<|im_%send|>' % X.replace('#', '')", lambda text: "#"),
    Transformation("('<|im_' ~ X).rstrip('#') ~ 'end|>'", lambda text: "#"),
    Transformation("'<|im_' ~ (X ~ 'end|>').lstrip('#')", lambda text: "#"),
    Transformation("('<|im_' ~ X ~ 'end|>').replace('#', '')", lambda text: "#"),
    Transformation("(('<|im_' ~ X).partition('#')[0] ~ 'end|>')", lambda text: "#"),
    Transformation("(('<|im_' ~ X ~ 'end|>').split('#') | join)", lambda text: "#"),
    Transformation("(('<|im_' ~ X ~ 'end|>') | reject('eq', '#') | join)", lambda text: "#"),
    Transformation("(X.removeprefix('#'))", lambda text: "#" + text),
    Transformation("(X.strip('#'))", lambda text: "#" + text + "#"),
)


class TransformingTemplate(NamedTuple):
    """A generated template.

    transformations: in the order in which they are applied.
    """

    named: NamedTemplate
    transformations: tuple[Transformation, ...]

    def preimage(self, text: str) -> str:
        """Returns text that the template turns into `text`, if there is such a text."""
        for transformation in reversed(self.transformations):
            text = transformation.preimage(text)
        return text


def make_template(seed: int) -> TransformingTemplate:
    """Returns a template with one to three transformations; the first seeds go through all of them, one by one."""
    rng = random.Random(f"template {seed}")
    (named, *_) = bundled_templates()
    chosen = rng.choices(TRANSFORMATIONS, k=rng.choice((1, 2, 2, 3)))
    if seed < len(TRANSFORMATIONS):
        chosen = [TRANSFORMATIONS[seed]]
    content = "m.content"
    for transformation in chosen:
        content = transformation.expression.replace("X", f"({content})")
    source = TEMPLATE.replace("CONTENT", content)
    for place, noun in (("OPENING", "start"), ("CLOSING", "end")):
        source = source.replace(place, rng.choice(ASSEMBLED).replace("NAME", f"im_{noun}").replace("NOUN", noun))
    return TransformingTemplate(named._replace(name=f"transforming {seed}", source=source), tuple(chosen))


class TransformingSubject(Subject):
    """A generated template under attack."""

    transforms = True

    def __init__(self, template: TransformingTemplate):
        super().__init__(template.named.load())
        self.looked_for = []  # what it looks for must not make a difference
        self._preimage = template.preimage

    def attacker(self, rng: random.Random) -> Attacker:
        return PreimageAttacker(self, rng, self._preimage)


class PreimageAttacker(Attacker):
    """Says what a template turns into control tokens, alone or among the attacks on every template."""

    def __init__(self, subject: Subject, rng: random.Random, preimage: Callable[[str], str]):
        super().__init__(subject, rng)
        self._preimage = preimage

    def __call__(self, own: bool) -> str:
        rng = self.rng
        if rng.random() < 0.4:
            return super().__call__(own)
        token = rng.choice(self.subject.control) if rng.random() < 0.7 else rng.choice(MARKS)
        self.said.append(self._preimage(token))
        return self.said[-1]
