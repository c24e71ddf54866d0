"""The chat page before models that answer with scripts, broken Markdown and endless nesting."""

import random

import pytest

pytestmark = pytest.mark.slow

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)><iframe src='https://evil.example'>",
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](//evil.example) [d](https://bank.example@evil.example/)",
    "![picture](https://evil.example/secret.png) <style>body{display:none}</style> <form action=https://evil.example>",
    "| <b>x</b> | `</td>` |\n|---|---|\n| <script>1</script> | [x](vbscript:1) |",
    "```html\n<script>alert(4)</script>\n",
    "# <img src=https://evil.example/x>\n- <a href='javascript:1'>x</a>\n> <object data=x>",
    "[‮moc.knab](https://evil.example/?a=1&b=<script>)",
]

MARKDOWN = """# One *title* with `code`

A paragraph with **bold *and both* of it**, ~~gone~~ and snake_case_words,
2 * 3 * 4, a \\*star\\*, ``a ` in code``, https://a.example/b_c_d. And [a link](https://a.example/x_(y)).

1. first
   ```python
   def f():
       return "`"
   ```
2. second
   - inner
     > quoted

   more of second
- - -
> quote
> - list

| a | b |
|:--|--:|
| 1 | `2` |

* * *
last **words
```
open code
"""

SHOWN = """<h3 class="level-1">One <em>title</em> with <code>code</code></h3>\
<p>A paragraph with <strong>bold <em>and both</em> of it</strong>, <del>gone</del> and snake_case_words,
2 * 3 * 4, a *star*, <code>a ` in code</code>, \
<a href="https://a.example/b_c_d" target="_blank" rel="noopener noreferrer nofollow" title="https://a.example/b_c_d">\
<bdi>https://a.example/b_c_d</bdi></a>. And <a href="https://a.example/x_(y)" target="_blank" \
rel="noopener noreferrer nofollow" title="https://a.example/x_(y)"><bdi>a link</bdi>\
<bdi class="target"> (https://a.example/x_(y))</bdi></a>.</p>"""

INCREMENTAL = """async ([text, cuts]) => {
  const { MarkdownView, markdown } = await import("/page/markdown.js");
  const grown = document.createElement("div"), whole = document.createElement("div");
  const view = new MarkdownView(grown);
  for (const cut of cuts) view.update(text.slice(0, cut));
  view.update(text);
  whole.append(...markdown(text));
  return [grown.innerHTML, whole.innerHTML];
}"""


def test_nothing_that_a_model_writes_becomes_a_page(open_chat):
    chat = open_chat()
    asked = []
    chat.page.on("dialog", lambda dialog: asked.append(dialog.message))
    for number, text in enumerate(HOSTILE):
        chat.server.answers[f"q{number}"] = [*text, {"reasoning_content": text}, {"tool_calls": [
            {"index": 0, "id": text, "function": {"name": text, "arguments": text}}]}]
        chat.ask(f"q{number}")
    chat.ask(HOSTILE[0])
    found = chat.page.locator("main").locator("script, img, iframe, style, object, svg[onload]")
    assert found.count() == 0
    links = chat.page.locator(".content a").evaluate_all("all => all.map(one => one.href)")
    assert {link.split("/x")[0] for link in links} == {
        "https://evil.example", "https://evil.example/", "https://evil.example/secret.png",
        "https://evil.example/?a=1&b=%3Cscript%3E"}
    shown = chat.page.locator(".content a").all_inner_texts()
    assert all("https://evil.example" in text for text in shown), "a link says where it leads"
    assert chat.answers()[0] == HOSTILE[0] and chat.answers()[1] == HOSTILE[1]
    assert chat.questions()[-1] == HOSTILE[0]
    assert asked == [] and chat.page.evaluate("location.pathname") == "/"


def test_the_policy_holds_even_if_the_page_had_a_hole(open_chat):
    chat = open_chat()
    chat.page.evaluate("""() => {
      const at = document.body.appendChild(document.createElement("p"));
      window.refused = [];
      for (const hole of [() => { at.innerHTML = "<b>x</b>"; }, () => { at.outerHTML = "<b>x</b>"; },
                          () => { document.write("x"); }, () => { setTimeout("window.ran = 1"); }]) {
        try { hole(); } catch (error) { window.refused.push(error.name); }
      }
    }""")
    assert chat.page.evaluate("window.refused") == ["TypeError"] * 4 and chat.page.evaluate("window.ran") is None
    assert chat.page.evaluate("fetch('https://evil.example/').then(() => 'sent', () => 'blocked')") == "blocked"
    with chat.page.expect_console_message(lambda message: message.text == "the end"):
        chat.page.evaluate("console.log('the end')")
    assert len(chat.said) > 4, "the browser names each of them"
    chat.said.clear()


def test_markdown_is_shown_and_the_same_piece_by_piece(open_chat):
    page = open_chat().page
    assert page.evaluate(INCREMENTAL, [MARKDOWN, []])[1].startswith(SHOWN)
    choose = random.Random(0)
    signs = ["*", "**", "_", "`", "```\n", "\n", "\n\n", "- ", "1. ", "  ", "> ", "|", "|---|\n", "# ", "[", "](", ")",
             "https://x.example", "word ", "~~", "\\", "---", "<b>", "中文", "---\n", "a | b\n"]
    texts = [MARKDOWN, *("".join(choose.choices(signs, k=60)) for _ in range(80))]
    for text in texts:
        cuts = sorted(choose.sample(range(len(text)), min(len(text), 25)))
        grown, whole = page.evaluate(INCREMENTAL, [text, cuts])
        assert grown == whole, (text, cuts)


CODE = 'def f():\n    return 1\n\n\ndef g():\n    return 2\n\n\n\nf()'


@pytest.mark.parametrize("indent", ["", "   ", "> ", "   > "])
def test_code_stays_the_same_code_in_lists_and_quotes(open_chat, indent):
    lines = ["```py", *CODE.split("\n"), "```", "", "", "after"]
    text = ("" if indent in ("", "> ") else "1. first\n") + "\n".join(f"{indent}{line}".rstrip() for line in lines)
    codes, whole = open_chat().page.evaluate("""async text => {
        const { MarkdownView, markdown } = await import("/page/markdown.js"), box = document.createElement("div");
        const grown = document.createElement("div"), view = new MarkdownView(grown);
        for (let end = 1; end <= text.length; end++) view.update(text.slice(0, end));
        box.append(...markdown(text));
        return [[box, grown].map(one => one.querySelector("pre code").textContent), box.textContent]; }""", text)
    assert codes == [CODE, CODE] and whole.endswith("after")


def test_code_that_still_grows_is_copied_as_far_as_it_has_come(open_chat):
    page = open_chat().page
    copied = page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js"), box = document.createElement("div"), copied = [];
        const view = new MarkdownView(box);
        navigator.clipboard.writeText = async text => { copied.push(text); };
        view.update("```py\\none\\n");
        view.update("```py\\none\\ntwo\\n");
        box.querySelector(".copy-code").click();
        return copied; }""")
    assert copied == ["one\ntwo\n"]


PIECES = ["[", "](", "[a](b", "*", "**a ", "_a*b ", "`", "`a``b```", "> ", "- ", "  - a\n", "|", "\n\n", "a | b\n-|-\n",
          "~~a", "https://", "![", "\\", "#", "(", "<", "-", "1. ", "- a\n\n", "```\n", "[a](https://x(y)", "> a\n",
          ":-"]


def test_long_answers_of_one_piece_are_shown(open_chat):
    """Time grows with the length. If it grew with its square, or worse, the browser would wait in vain."""
    page = open_chat().page
    for piece in PIECES:
        text = "a | b\n" + piece * (20_000 // len(piece)) + "x"
        ends = page.evaluate("""async text => {
            const { markdown } = await import("/page/markdown.js"), box = document.createElement("div");
            box.append(...markdown(text));
            return box.textContent.includes("x"); }""", text)
        assert ends, piece
