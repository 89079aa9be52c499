"""Short word problems and sentences that carry arithmetic, as data tables.

A `Story` has a text with named numbers and steps ``(name, expression, sentences)``. In a
sentence ``{e}`` is the worked chain, ``{v}`` the result alone. Every fifth story and every
fifth frame is held out (see `records.Context.pick`). Data only; imports nothing but typing.
"""

from __future__ import annotations

from typing import NamedTuple


class Story(NamedTuple):
    """One word problem: `text`, ranges of its given numbers, and its steps."""

    text: str
    given: dict[str, tuple[int, int]]
    steps: tuple[tuple[str, str, str], ...]


NAMES = (
    "Ali",
    "Ben",
    "Chloe",
    "Dana",
    "Eva",
    "Farid",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kim",
    "Lena",
    "Maya",
    "Nora",
    "Omar",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Zoe",
    "Mrs. Lee",
    "Mr. Shah",
    "Tom",
)
THINGS = (
    "apples",
    "books",
    "pencils",
    "tickets",
    "cards",
    "eggs",
    "cookies",
    "marbles",
    "chairs",
    "stamps",
    "bottles",
    "cups",
    "pages",
    "boxes",
    "flowers",
    "stickers",
    "shirts",
    "toys",
    "coins",
    "oranges",
)

STORIES = (
    Story(
        "{N} buys {a} {T} at ${b} each and a bag for ${c}. How much does {N} pay?",
        {"a": (2, 15), "b": (2, 12), "c": (1, 20)},
        (
            ("p", "a*b", "The {T} cost {e} dollars."),
            ("q", "p+c", "With the bag that is {e} dollars."),
        ),
    ),
    Story(
        "{N} has {a} {T}. {N} gives away {b} and then buys {c} more. How many {T} are there now?",
        {"a": (20, 90), "b": (2, 18), "c": (2, 30)},
        (
            ("p", "a-b", "After giving some away {N} has {e} {T}."),
            ("q", "p+c", "Then there are {e} {T}."),
        ),
    ),
    Story(
        "A pack of {a} {T} costs ${b}. What do {c} packs cost, and what is the change from ${d}?",
        {"a": (3, 12), "b": (2, 9), "c": (2, 9), "d": (90, 120)},
        (("p", "b*c", "{c} packs cost {e} dollars."), ("q", "d-p", "The change is {e} dollars.")),
    ),
    Story(
        "{N} reads {a} pages a day for {b} days. The book has {c} pages. How many pages are left?",
        {"a": (5, 30), "b": (3, 9), "c": (280, 400)},
        (
            ("p", "a*b", "In {b} days {N} reads {e} pages."),
            ("q", "c-p", "There are {e} pages left."),
        ),
    ),
    Story(
        "There are {a} rows of {b} chairs and {c} chairs at the back. {d} people "
        "sit down. How many chairs stay empty?",
        {"a": (3, 12), "b": (6, 15), "c": (2, 12), "d": (5, 19)},
        (
            ("p", "a*b", "The rows hold {e} chairs."),
            ("q", "p+c", "Altogether there are {e} chairs."),
            ("r", "q-d", "So {e} chairs stay empty."),
        ),
    ),
    Story(
        "{N} earns ${a} an hour and works {b} hours a day, {c} days a week. How "
        "much is that a week?",
        {"a": (8, 30), "b": (2, 9), "c": (2, 6)},
        (
            ("p", "a*b", "{N} earns {e} dollars a day."),
            ("q", "p*c", "In a week that makes {e} dollars."),
        ),
    ),
    Story(
        "The ratio of red to blue {T} is {a}:{b}. There are {c} groups like "
        "that. How many {T} are there in all?",
        {"a": (2, 9), "b": (2, 9), "c": (2, 12)},
        (("p", "a+b", "One group has {e} parts."), ("q", "p*c", "In all there are {e} {T}.")),
    ),
    Story(
        "{N} drives {a} km in {b} hours. How far does {N} go in {c} hours at the same speed?",
        {"a": (0, 0), "b": (2, 6), "c": (2, 9), "k": (30, 90)},
        (
            ("p", "a/b", "The speed is {e} km per hour."),
            ("q", "p*c", "In {c} hours that is {e} km."),
        ),
    ),
    Story(
        "{a} {T} cost ${d}. How much do {c} {T} cost?",
        {"a": (2, 12), "c": (2, 15), "d": (0, 0), "k": (2, 14)},
        (("p", "d/a", "One of them costs {e} dollars."), ("q", "p*c", "So {c} cost {e} dollars.")),
    ),
    Story(
        "{N} and {M} share {a} {T}. {N} gets {b} and {M} splits the rest evenly "
        "into {c} bags with {k} over. "
        "How many are left to split?",
        {"a": (60, 120), "b": (10, 40), "c": (2, 5), "k": (1, 9)},
        (("p", "a-b", "{M} gets {e} {T}."), ("q", "p-k", "To split there are {e} {T}.")),
    ),
    Story(
        "A tank holds {a} litres. Each day {b} litres are used and {c} are "
        "added. What is left after {d} days?",
        {"a": (200, 500), "b": (12, 30), "c": (2, 11), "d": (2, 9)},
        (
            ("p", "b-c", "Each day the tank loses {e} litres."),
            ("q", "p*d", "Over {d} days: {e} litres."),
            ("r", "a-q", "Left in the tank: {e} litres."),
        ),
    ),
    Story(
        "{N} saves ${a} each week for {b} weeks and spends ${c}. How much money is left?",
        {"a": (5, 40), "b": (6, 20), "c": (4, 29)},
        (
            ("p", "a*b", "{N} saves {e} dollars."),
            ("q", "p-c", "After spending, {e} dollars are left."),
        ),
    ),
    Story(
        "A rectangle is {a} cm long and {b} cm wide. Find its perimeter and its area.",
        {"a": (3, 30), "b": (2, 20)},
        (("p", "2*a+2*b", "Perimeter: {e} cm"), ("q", "a*b", "Area: {e} square cm")),
    ),
    Story(
        "{N} bakes {a} trays with {b} cookies each and eats {c}. The rest go on "
        "plates of {d}. How many are not eaten?",
        {"a": (2, 9), "b": (6, 24), "c": (1, 9), "d": (2, 8)},
        (("p", "a*b", "There are {e} cookies."), ("q", "p-c", "Not eaten: {e} cookies.")),
    ),
    Story(
        "A hall has {a} rows of {b} seats. {c} seats are broken and {d} are kept "
        "free. Count the rest.",
        {"a": (5, 15), "b": (6, 14), "c": (2, 9), "d": (3, 12)},
        (
            ("p", "a*b", "The hall has {e} seats."),
            ("q", "p-c", "Not broken: {e}"),
            ("r", "q-d", "The rest: {e} seats"),
        ),
    ),
    Story(
        "A coat costs ${a}. The price drops by {b}%. What is the new price?",
        {"a": (2, 20), "b": (0, 0), "k": (1, 9)},
        (
            ("p", "a*b/100", "The price drops by {e} dollars."),
            ("q", "a-p", "The new price is {e} dollars."),
        ),
    ),
    Story(
        "{N} puts ${a} in a bank at {b}% a year. How much is there after one year?",
        {"a": (2, 20), "b": (0, 0), "k": (1, 5)},
        (
            ("p", "a*b/100", "The interest is {e} dollars."),
            ("q", "a+p", "After a year there are {e} dollars."),
        ),
    ),
    Story(
        "Write the length of {a} planks of {b} cm each in millimetres.",
        {"a": (2, 15), "b": (5, 80)},
        (("p", "a*b", "All planks: {e} cm"), ("q", "p*10", "In mm: {e} mm")),
    ),
    Story(
        "{N} is {a} years old. {M} is {b} times as old, and {O} is {c} years "
        "younger than {M}. How old is {O}?",
        {"a": (6, 14), "b": (2, 5), "c": (1, 9)},
        (("p", "a*b", "{M} is {e} years old."), ("q", "p-c", "{O} is {e} years old.")),
    ),
    Story(
        "A film lasts {a} hours and {b} minutes, the adverts {c} minutes. How "
        "long is that in minutes?",
        {"a": (1, 4), "b": (3, 55), "c": (5, 25)},
        (
            ("p", "a*60", "The hours make {e} minutes."),
            ("q", "p+b", "The film lasts {e} minutes."),
            ("r", "q+c", "With adverts it is {e} minutes."),
        ),
    ),
    Story(
        "{N} sells {a} {T} for ${b} each. They cost ${c} each to make. What is the profit?",
        {"a": (4, 40), "b": (9, 20), "c": (2, 8)},
        (
            ("p", "b-c", "On each one {N} makes {e} dollars."),
            ("q", "p*a", "The profit is {e} dollars."),
        ),
    ),
    Story(
        "{N} runs {a} laps of {b} metres on {c} days. How many metres is that?",
        {"a": (3, 12), "b": (2, 8), "c": (2, 7)},
        (("p", "a*b", "One day: {e} metres."), ("q", "p*c", "Total: {e} metres.")),
    ),
    Story(
        "{N} scores {a}, {b} and {c} points. What is the mean?",
        {"a": (0, 0), "b": (5, 30), "c": (5, 30), "k": (20, 40)},
        (("p", "a+b+c", "The sum is {e}."), ("q", "p/3", "The mean is {e}.")),
    ),
    Story(
        "{a} kg of apples at ${b} per kg and {c} kg of pears at ${d} per kg: what is the bill?",
        {"a": (2, 9), "b": (2, 9), "c": (2, 9), "d": (2, 9)},
        (
            ("p", "a*b", "Apples: {e}"),
            ("q", "c*d", "Pears: {e}"),
            ("r", "p+q", "The bill is {e} dollars."),
        ),
    ),
    Story(
        "A farmer packs {a} eggs in boxes of {b} and sells each box for ${c}. "
        "How much money is that?",
        {"a": (0, 0), "b": (4, 12), "c": (2, 9), "k": (5, 30)},
        (("p", "a/b", "There are {e} boxes."), ("q", "p*c", "The boxes bring {e} dollars.")),
    ),
    Story(
        "{N} fills {a} jars with {b} g of jam. Each jar weighs {c} g when empty. "
        "How heavy are the full jars?",
        {"a": (2, 9), "b": (50, 400), "c": (20, 120)},
        (("p", "b+c", "A full jar weighs {e} g."), ("q", "p*a", "Together they weigh {e} g.")),
    ),
    Story(
        "Half of the {a} {T} are sold, and then {b} more. How many are left?",
        {"a": (0, 0), "b": (2, 12), "k": (20, 90)},
        (("p", "a/2", "Half of them is {e}."), ("q", "p-b", "Then {e} {T} are left.")),
    ),
    Story(
        "{N} needs {a} g of flour for {b} people. How much for {c} people?",
        {"a": (0, 0), "b": (2, 8), "c": (2, 15), "k": (20, 90)},
        (("p", "a/b", "Per person: {e} g"), ("q", "p*c", "For {c} people: {e} g")),
    ),
    Story(
        "The temperature is {a} degrees in the morning, falls by {b} degrees and "
        "then rises by {c}. What is it then?",
        {"a": (-9, 9), "b": (3, 15), "c": (2, 12)},
        (("p", "a-b", "After the fall: {e}"), ("q", "p+c", "In the end: {e} degrees")),
    ),
    Story(
        "A bus has {a} seats. {b} buses are full and {c} people stand in each. "
        "How many people travel?",
        {"a": (20, 60), "b": (2, 9), "c": (3, 15)},
        (
            ("p", "a+c", "Each bus carries {e} people."),
            ("q", "p*b", "Altogether {e} people travel."),
        ),
    ),
)

# Stories whose given number `big` must divide: big = k * small, with k drawn.
DERIVED = {7: ("a", "b"), 8: ("d", "a"), 24: ("a", "b"), 26: ("a", 2), 27: ("a", "b")}

# What a story may say beside the point: its numbers are needed by no step. Trained on only, so that
# the measured stories stay those of before.
ASIDES = (
    "{T} are sold in packs of {x} for ${y}.",
    "{M} has {x} {T}.",
    "The shop is {x} km away.",
    "It is {x} o'clock.",
    "There are {x} people in the family.",
    "Last year it was {x}.",
    "{M} is {x} years old and has {y} brothers.",
    "A box of {x} costs ${y}.",
    "The bus leaves in {x} minutes and costs ${y}.",
    "In class {x} there are {y} pupils.",
    "On page {x} it says {y}.",
    "{O} paid ${x} for {y} {T}.",
    "The shop opens at {x} and closes at {y}.",
    "Each box holds {x} {T}.",
)

GENERIC = (
    "So {e}.",
    "We calculate {e}.",
    "{e}",
    "That gives {e}.",
    "It comes to {e}",
    "Next, {e}",
    "Now compute {e}.",
    "Then {e}",
    "This means {e}.",
    "Working it out: {e}",
)

FRAMES = (
    "{N} has {e} {T} left.",
    "So {N} pays {e}.",
    "That makes {e} {T} in total.",
    "In total there are {e} {T}",
    "{N} ends up with {e} {T}.",  # held out
    "{N} sold {e} {T} on Monday",
    "Each {t} costs {e} dollars",
    "He needs {e} {T}.",
    "She buys {e} {T}.",
    "It takes {N} {e} minutes.",  # held out
    "The total cost is {e}",
    "After that, {N} has {e} {T}.",
    "{N} spends {e} on {T}",
    "There are {e} {T} in the box.",
    "All of them together weigh {e} kg.",  # held out
    "First find how many {T} there are: {e}",
    "Then subtract to find what is left: {e}",
    "They have {e} {T} altogether",
    "{N} makes {e} per week",
    "The two of them read {e} pages a week.",  # held out (last)
    "So the total is {e} dollars.",
    "He drives {e} miles",
    "{N} has to work {e} hours to pay for it.",
    "{N} gives {M} {e} {T}.",
    "The trip took them {e} hours.",  # held out (last)
    "That means {N} has {e} more {T} than {M}.",
    "{N} earned {e} from selling {T}",
    "So there are {e} {T} left for {M}",
    "Therefore it costs {e}.",
    "What remains is {e} {T}.",  # held out (last)
)

STARTS = (
    "{N} has some {T} and wants to know how many are left.",
    "{N} and {M} buy {T} for a party. How much do they spend?",
    "How many {T} does {N} have in the end?",
    "{N} sells {T} at the market. How much money does {N} make?",
    "Find the number of {T} that {N} needs.",  # held out
    "{N} works for {M}. What does {N} earn in a month?",
    "How long does it take {N}?",
    "Help {N} with the shopping.",
    "A shop sells {T}. How much does {N} pay in total?",
    "How old is {M} now?",  # held out (last)
)
ENDS = (
    "The answer is {v}.",
    "A: {v}",
    "Answer: {v}",
    "So the answer is {v}",
    "The result is {v}.",
    "#### {v}",
    "Final answer: {v}",
    "So it is {v}.",
    "Therefore the answer is {v}.",
    "{v} it is.",
)
