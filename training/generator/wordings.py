"""What people write around the formulas of equation solving, as pools of templates.

``{m}`` is the formula of the line, ``{n}`` the amount moved, ``{v}`` the letter, ``{r}`` a
numeric reason such as 8/2=4, ``{w}`` the working before tidying. Every fifth entry of a
pool is held out of training (see `records.Context.pick`). Data only; imports nothing.
"""

from __future__ import annotations

MOVES: dict[str, tuple[str, ...]] = {
    "subtract": (
        "Subtract {n} from both sides: {m}",
        "Take {n} from both sides: {m}",
        "{m} (subtract {n})",
        "Subtracting {n} from both sides gives {m}",
        "Take away {n} on both sides to get {m}",  # held out
        "We subtract {n} from both sides, so {m}.",
        "{m}, taking {n} off each side",
        "-{n} both sides: {m}",
        "Step: subtract {n}. {m}",
        "Removing {n} from each side leaves {m}.",  # held out
        "First, subtract {n} from each side to get {m}.",
        "Now take {n} from each side. This gives {m}.",
        "If I subtract {n} on both sides I get {m}",
        "both sides minus {n}: {m}",
        "Next I took {n} away from the left and the right: {m}",  # held out
    ),
    "add": (
        "Add {n} to both sides: {m}",
        "{m} (add {n})",
        "Adding {n} to both sides gives {m}",
        "We add {n} to both sides, so {m}.",
        "I add {n} on the left and on the right: {m}",  # held out
        "Put {n} on each side: {m}",
        "{m}, adding {n} to each side",
        "+{n} both sides: {m}",
        "Step: add {n}. {m}",
        "After adding {n} to each side we have {m}.",  # held out
        "First, add {n} to each side to get {m}.",
        "Now add {n} to each side. This gives {m}.",
        "both sides plus {n}: {m}",
    ),
    "divide": (
        "Divide both sides by {n}: {m}",
        "{m} (divide by {n})",
        "Dividing both sides by {n} gives {m}",
        "We divide both sides by {n}, so {m}.",
        "Divide through by {n} and get {m}",  # held out
        "Divide by {n}: {m}",
        "{m}, dividing each side by {n}",
        "Now divide each side by {n}. This gives {m}.",
        "÷{n} both sides: {m}",
        "Each side over {n} leaves {m}.",  # held out
        "Finally, divide each side by {n} to get {m}.",
    ),
    "multiply": (
        "Multiply both sides by {n}: {m}",
        "{m} (multiply by {n})",
        "Multiplying both sides by {n} gives {m}",
        "We multiply both sides by {n}, so {m}.",
        "Times {n} on both sides, giving {m}",  # held out
        "Multiply by {n} to clear the fraction: {m}",
        "{m}, multiplying each side by {n}",
        "Get rid of the fraction: {m}",
        "×{n} both sides: {m}",
        "Clearing the {n} on the bottom leaves {m}.",  # held out
    ),
    "negate": (
        "Multiply both sides by -1: {m}",
        "Divide both sides by -1: {m}",
        "{m} (change signs)",
        "Change the sign of both sides: {m}",
        "Swap all the signs, so {m}",  # held out
        "Multiplying by -1, {m}",
    ),
    "expand": (
        "Expand the brackets: {m}",
        "Multiply out: {m}",
        "{m} (expand)",
        "Distribute: {m}",
        "Open up the brackets to get {m}",  # held out
        "Expanding gives {m}",
        "Using the distributive property, {m}",
        "Remove the parentheses: {m}",
        "First expand the bracket, so {m}.",
        "We multiply each term inside the bracket and have {m}.",  # held out
    ),
    "combine": (
        "Combine like terms: {m}",
        "Simplify: {m}",
        "{m} (collect like terms)",
        "Collecting terms gives {m}",
        "Put the like terms together and get {m}",  # held out
        "Simplifying, {m}",
        "This simplifies to {m}.",
        "Tidy up: {m}",
        "Add up the terms on each side: {m}",
        "Gathering terms of the same kind leaves {m}.",  # held out
    ),
}

ANY: tuple[str, ...] = (
    "So {m}",
    "This gives {m}",
    "{m}.",
    "Then {m}.",
    "which leaves us with {m}",  # held out
    "=> {m}",
    "Now we have {m}.",
    "Therefore {m}",
    "We get {m}",
    "From this it follows that {m}.",  # held out
    "Next: {m}",
    "Hence {m}",
    "so that's {m}",
    "Rewrite it as {m}.",
    "In other words {m}",  # held out
)

WORKED: tuple[str, ...] = (
    "{w}, so {m}",
    "{w} → {m}",
    "{w} => {m}",
    "{w}, {m}",
    "{w} and that means {m}",  # held out
    "{w} which gives {m}.",
    "{w}; {m}",
    "From {w} we get {m}",
    "{w} \u21d2 {m}",
    "Write {w}. That is {m}.",  # held out
)

FINAL: tuple[str, ...] = (
    "so {m}",
    "Therefore, {m}.",
    "The solution is {m}.",
    "Answer: {m}",
    "and in the end {m}",  # held out
    "Hence {m}.",
    "Final answer: {m}",
    "The answer is {m}.",
    "{m} ✓",
    "We conclude that {m}.",  # held out
    "So the solution is {m}",
    "Thus {m}.",
)

REASON: tuple[str, ...] = (
    "so {m} because {r}",
    "{m} since {r}",
    "{m}, because {r}.",
    "{r}, so {m}",
    "As {r}, we have {m}.",  # held out
    "{m} ({r})",
    "Because {r}, {m}.",
    "We know {r}, therefore {m}",
    "{m} as {r}",
    "{m}, for {r}.",  # held out
)

CHECK: tuple[str, ...] = (
    "Check: {r}",
    "Checking: {r} ✓",
    "Check by substituting: {r}.",
    "Proof: {r}, which is right",
    "Put it back in: {r}",  # held out
    "To check, {r}.",
    "Substitute {m}: {r}",
    "Check: {r}, so {m}.",
    "{r}, so {m} is right.",
)
# The two sides of a check, each by itself.
BOTH: tuple[str, ...] = (
    "{0} and {1}",
    "{0}, {1}",
    "{0}; {1}",
    "left: {0}, right: {1}",
    "{0} while {1}",  # held out
    "{0} and also {1}",
    "the left side is {0}, the right side is {1}",
    "LHS {0}, RHS {1}",
    "{0} as well as {1}",
)

PROBLEMS: tuple[str, ...] = (
    "Solve for {v}: {m}",
    "Solve {m}",
    "Solve for {v}: {m}",
    "Solve the equation {m}.",
    "Work out {v} when {m}",  # held out
    "Find {v}: {m}",
    "{m}",
    "Find the value of {v} if {m}.",
    "What is {v} if {m}?",
    "{m}. What number is {v}?",  # held out
    "Solve: {m}",
)

OPENERS: tuple[str, ...] = (
    "We want {v} on its own.",
    "Start with {m}.",
    "Let's solve {m}.",
    "The equation is {m}.",
    "Begin by writing {m}.",  # held out
    "We need to find {v}.",
    "Given: {m}",
)
