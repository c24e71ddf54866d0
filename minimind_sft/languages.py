"""The languages that rows can be filtered by."""

LETTERS = {
    "en": "A-Za-z\u00c0-\u024f",
    "zh": "\u3400-\u4dbf\u4e00-\u9fff",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7a3",
    "ru": "\u0400-\u04ff",
}
"""The letters of each language, as ranges of a regular expression; other languages may use them too."""
