"""Document bytes → pages → recogniser → text.

`ocr.document.read_document` is the whole path. Every document is decoded in a child process with limits of
its own (`ocr.decoder`), and every recogniser runs in another. Nothing is imported here: the decoding child
imports this package for each document and needs little of it.
"""
