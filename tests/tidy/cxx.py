# SPDX-License-Identifier: GPL-2.0-only
"""What tidy needs to know of C++ text: enough to see statements, blocks and lambdas, not a parser."""
import re

_TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"([^()\\ ]{0,16})\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|\d[\w\']*', re.DOTALL)


def code_of(text):
    """The text with comments and the insides of literals blanked: every place keeps its offset and line."""
    def blank(match):
        piece = match.group(0)
        if piece[0].isdigit():
            return piece
        return re.sub(r"[^\n]", " ", piece)
    return _TOKEN.sub(blank, text)


def line_of(text, at):
    return text.count("\n", 0, at) + 1


_CLOSERS = {")": "(", "]": "[", "}": "{"}


def end_of_block(code, opened_at):
    """The offset of the brace that closes the one at `opened_at`, or the end of the text."""
    depth = 0
    for at in range(opened_at, len(code)):
        if code[at] == "{":
            depth += 1
        elif code[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    return len(code)


def end_of_enclosing_block(code, at):
    depth = 0
    for here in range(at, len(code)):
        if code[here] == "{":
            depth += 1
        elif code[here] == "}":
            depth -= 1
            if depth < 0:
                return here
    return len(code)


def _opens_initializer(before):
    """Whether a brace after this text begins an initializer and not a block."""
    before = before.rstrip()
    if re.search(r"->\s*[\w:<>,\s&*]+$", before):  # a lambda's or function's result
        return False
    if re.search(r"\b(else|do|try|const|noexcept|mutable|override|final)$", before):
        return False
    return bool(re.search(r"[\w>=,(\[]$", before))


def statement_before(code, at):
    """(text from the start of the statement to `at`, what encloses it: '' or the reason why it is no statement)."""
    here = at - 1
    while here >= 0:
        char = code[here]
        if char in ")]":
            depth = 0
            while here >= 0:
                if code[here] in ")]":
                    depth += 1
                elif code[here] in "([":
                    depth -= 1
                    if depth == 0:
                        break
                here -= 1
        elif char in "([":
            return code[here + 1:at], "inside parentheses"
        elif char == "{":
            return code[here + 1:at], "inside braces" if _opens_initializer(code[:here]) else ""
        elif char in ";}":
            return code[here + 1:at], ""
        here -= 1
    return code[:at], ""


def statement_after(code, at):
    depth = 0
    for here in range(at, len(code)):
        if code[here] in "([{":
            depth += 1
        elif code[here] in ")]}":
            depth -= 1
        elif code[here] == ";" and depth <= 0:
            return code[at:here]
    return code[at:]


def top_level(text):
    """The text without what stands in brackets of any kind."""
    kept, depth = [], 0
    for char in text:
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0:
            kept.append(char)
    return "".join(kept)


def without_heads(prefix):
    """A statement's beginning without the if, for and while that stand before it."""
    while True:
        shorter = re.sub(r"^\s*(?:else|do)\b", "", prefix)
        shorter = re.sub(r"^\s*(?:case\b[^:]*(?:::[^:]*)*|default\s*):(?!:)", "", shorter)
        head = re.match(r"\s*(?:if|while|for|switch)\s*(?:constexpr\s*)?\(", shorter)
        if head:
            depth, here = 0, head.end() - 1
            while here < len(shorter):
                depth += {"(": 1, ")": -1}.get(shorter[here], 0)
                here += 1
                if depth == 0:
                    break
            shorter = shorter[here:]
        if shorter == prefix:
            return prefix
        prefix = shorter


_LAMBDA = re.compile(r"(?<![\w\])\[])\[(?!\[)([^\[\]]*)\]\s*(?=[({])")


def lambdas(code):
    """(offset, captures, body) of each lambda; a body is without the lambdas inside it."""
    found = []
    for match in _LAMBDA.finditer(code):
        here = match.end()
        if code[here] == "(":
            depth = 0
            while here < len(code):
                depth += {"(": 1, ")": -1}.get(code[here], 0)
                here += 1
                if depth == 0:
                    break
        opened = re.compile(r"[^;{}()]*\{").match(code, here)
        if opened:
            found.append((match.start(), match.group(1).strip(), opened.end() - 1, end_of_block(code, opened.end() - 1)))
    result = []
    for start, captures, opened, closed in found:
        body = list(code[opened:closed])
        for inner_start, _, inner_opened, inner_closed in found:
            if opened < inner_start < closed:
                for at in range(inner_opened - opened, min(inner_closed, closed) - opened):
                    body[at] = " "
        result.append((start, captures, "".join(body)))
    return result
