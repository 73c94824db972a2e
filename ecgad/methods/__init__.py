"""One file per published method; this folder is the list of methods.

Each file holds `Config` and `Model(Detector)`, and its docstring begins with the four lines that
`ecgad methods` prints: title, `Paper:`, `Good at:`, `Data:`.
"""
