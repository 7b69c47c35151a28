"""What the book's pages, labs and courses use; the library ``csq_mini`` knows nothing of it.

    from csq_book import charts, labs, puzzles
    from csq_book.pages import say, source
"""
