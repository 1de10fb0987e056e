"""Fuzzing any server: steps and how they are drawn, finds, and the campaign that plays, reduces and keeps them."""

from userdev.fuzz.campaign import Bounds, Campaign, Reporter, Subject, Summary
from userdev.fuzz.comparison import Answer, Journal, compared
from userdev.fuzz.finds import Find, Found, Oracle, cause_of, silence_of
from userdev.fuzz.steps import Blob, Choice, Few, Kind, Number, Pick, Several, Step, Value

__all__ = [
    "Answer",
    "Blob",
    "Bounds",
    "Campaign",
    "Choice",
    "Few",
    "Find",
    "Found",
    "Journal",
    "Kind",
    "Number",
    "Oracle",
    "Pick",
    "Reporter",
    "Several",
    "Step",
    "Subject",
    "Summary",
    "Value",
    "cause_of",
    "compared",
    "silence_of",
]
