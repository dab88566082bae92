"""The report: one page that tells what was asked, what came out and what to change next.

It is made of what the other commands wrote and of nothing else, and needs no network and no script.
"""
