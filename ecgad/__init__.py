"""`ecgad` learns what a normal ECG looks like and tells how strange a new one is, and where.

file --read--> Record --prepare--> array --method--> Evidence
     --score--> number --calibrate--> p-value, decision --report--> what a clinician reads

record = ecgad.read("ecg.hea")        # Record: mV, leads by name; of an array: Record.from_array
result = ecgad.load().score(record)   # Result: score, p_value, decision, intervals, map
table = ecgad.screen("archive/", out="results/")
model = ecgad.train("mmae", records, seed=0)
"""

__version__ = "0.1.0"

from ecgad.record import Interval, NotMine, Quality, ReadError, Record, Result  # isort: skip
from ecgad.read import read  # isort: skip
from ecgad.bundle import Bundle, load  # isort: skip
from ecgad.prepare.signal import Preparation  # isort: skip
from ecgad.train import Budget, Progress  # isort: skip
from ecgad.learn import train  # isort: skip
from ecgad.screen import screen  # isort: skip

__all__ = [
    "Budget", "Bundle", "Interval", "NotMine", "Preparation", "Progress", "Quality", "ReadError",
    "Record", "Result", "__version__", "load", "read", "screen", "train",
]  # fmt: skip
