"""`ecgad` learns what a normal ECG looks like and tells how strange a new one is, and where.

    file --read--> Record --prepare--> array --method--> Evidence
         --score--> number --calibrate--> p-value, decision --report--> what a clinician reads
"""

__version__ = "0.1.0"
