"""Messages in tests: a test checks the facts of a message (place, value, options offered) and leaves the words free."""

import re


def assert_says(message: object, *facts: object) -> None:
    """Check that a message (a text or an exception) gives every fact, whatever words stand around them.

    A fact is a place, a value, a name or an option. It must stand alone: "8" is not found in "18".
    """
    text = str(message)
    missing = [fact for fact in map(str, facts) if not re.search(rf"(?<![\w]){re.escape(fact)}(?![\w])", text)]
    assert not missing, f"{missing} not in: {text}"
