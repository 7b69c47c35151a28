"""What the book makes of its rows of results: verdicts on claims, tables and figures."""

from pathlib import Path

BOOK = Path(__file__).resolve().parents[2]
ROWS = BOOK / "results" / "rows"
"""The book's rows of results, each with the history of its run: for ``csq_mini.reproduce(results=ROWS)``."""

PUBLISHED = BOOK / "reproductions" / "published.yml"
"""Published figures, and what the book plans to run and claims; its comments explain the fields."""
