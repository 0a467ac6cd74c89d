r"""Texts in a tab-separated cell: tab, line ends and backslash are written \t, \n, \r and \\.

Nothing else is quoted or escaped: a quotation mark is text, and so is a backslash before any other
character (files of other makers hold such).
"""

import re

_TO = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
_FROM = {escaped: plain for plain, escaped in _TO.items()}
_PLAIN = re.compile(r"[\\\t\n\r]")
_ESCAPED = re.compile(r"\\[\\tnr]")


def escape(text: str) -> str:
    """`text` as a cell."""
    return _PLAIN.sub(lambda match: _TO[match[0]], text)


def unescape(cell: str) -> str:
    """The text of a cell; the inverse of `escape`."""
    return _ESCAPED.sub(lambda match: _FROM[match[0]], cell)
