"""Trainers: one file is one family and its training; `tasks` is what they learn, `loop` is how."""
