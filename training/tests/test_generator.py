"""The generator: labels recomputed from the text alone, determinism, split of the pools."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from training.generator import (
    ERRORS,
    FAMILIES,
    Context,
    Line,
    draw,
    equations,
    linear,
    percent,
    shapes,
    stream,
    tales,
    tutor,
)
from training.generator import wordings as words
from training.generator.algebra import (
    AlgebraError,
    decimal,
    difference,
    equivalent,
    parse,
    true_chain,
    value,
)
from training.generator.corrupt import break_chain, break_equation, near_equation
from training.generator.linear import total
from training.generator.mixture import EARLY, LESSONS, weights
from training.generator.paraphrase import around, paraphrase
from training.generator.surface import Style, make_style


@pytest.mark.parametrize(
    ("text", "poly"),
    [
        ("3x+5", {"x": 3, "": 5}),
        ("-2(x-3)/4", {"x": Fraction(-1, 2), "": Fraction(3, 2)}),
        ("x/-2*-2", {"x": 1}),
        ("--3-(-x)", {"": 3, "x": 1}),
        ("(x-2)(x+3)", {"xx": 1, "x": 1, "": -6}),
        (".5*4x", {"x": 2}),
        ("2x^2-xx", {"xx": 1}),
        ("3-3", {}),
    ],
)
def test_parse_reads_exactly(text: str, poly: dict[str, Fraction]) -> None:
    assert parse(text) == poly


@pytest.mark.parametrize("text", ["3/0", "1/x", "(2+1", "3+", "3 & 4", ""])
def test_parse_rejects_what_it_cannot_read(text: str) -> None:
    with pytest.raises(AlgebraError):
        parse(text)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("3x+5=20", "3x=15", True),
        ("3x=15", "15=3x", True),
        ("3x=15", "x=5", True),
        ("3x=15", "x=-5", False),
        ("x=4", "0=0", False),
        ("3x=15", "3=15", False),
    ],
)
def test_equivalent_compares_equations(first: str, second: str, same: bool) -> None:
    assert equivalent(first, second) is same


def test_decimal_writes_exactly() -> None:
    assert [decimal(Fraction(n)) for n in ("-7/4", "3", "1/8", "-0.05")] == [
        "-1.75",
        "3",
        "0.125",
        "-0.05",
    ]
    with pytest.raises(AlgebraError, match="terminate"):
        decimal(Fraction(1, 3))


def test_break_chain_makes_a_true_chain_false() -> None:
    rng = random.Random(0)
    broken = [break_chain(rng, "12*4=48") for _ in range(200)]
    assert all(change and not true_chain(change[0]) for change in broken)


def test_break_equation_never_keeps_the_solution() -> None:
    rng = random.Random(1)
    for _ in range(300):
        change = break_equation(rng, "3x+5=20", "3x=15")
        assert change
        assert not equivalent("3x+5=20", change[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_draw_is_seeded_and_labels_name_errors(family: str, split: str) -> None:
    first, second = (
        [draw(Context(random.Random(seed), split), family) for seed in range(60)]  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first == second
    for solution in first:
        assert solution.lines
        for line in solution.lines:
            assert line.error in ERRORS
            assert line.good is (line.error == "none")
            assert "\n" not in line.text


def test_stream_depends_on_its_seed() -> None:
    one, two = stream(1), stream(2)
    assert [next(one) for _ in range(5)] != [next(two) for _ in range(5)]


def test_tutor_labels_follow_from_the_text_alone() -> None:
    checked = 0
    for seed in range(400):
        solution = tutor.solution(Context(random.Random(seed)))
        before = solution.problem.split(":")[-1].strip()
        for line in solution.lines:
            assert set(difference(before)) - {""}, "everything follows from a contradiction"
            assert equivalent(before, line.text) is line.good
            before = line.text
            checked += 1
    assert checked > 800


def test_bare_linear_labels_follow_from_the_text_alone() -> None:
    """Labels of unworded lines agree with a fresh reading of the rendered text."""
    bare = re.compile(r"[\d+\-*/()=.\sx]+")
    checked = {True: 0, False: 0}
    for seed in range(1500):
        solution = equations.solution(Context(random.Random(seed)))
        given = re.sub(r"^[A-Z][a-z ]+x?: ", "", solution.problem)
        lines = [text.rstrip(".?") for text in (given, *(line.text for line in solution.lines))]
        if not all(bare.fullmatch(text) and text.count("=") == 1 for text in lines):
            continue
        for before, after, line in zip(lines, lines[1:], solution.lines, strict=False):
            assert equivalent(before, after) is line.good
            checked[bool(line.good)] += 1
    assert min(checked.values()) > 20


def test_sums_are_labelled_by_what_they_say_and_taught_from_the_equals_sign() -> None:
    checked = {True: 0, False: 0}
    for seed in range(200):
        for line in draw(Context(random.Random(seed)), "sums", 0.5).lines:
            assert line.text[line.free - 1] == "="
            plain = line.text.replace(" ", "")
            if re.fullmatch(r"[\d.+\-*/()=]+", plain):
                assert true_chain(plain) is line.good
                checked[bool(line.good)] += 1
    assert min(checked.values()) > 100


def test_stories_trained_on_say_things_beside_the_point() -> None:
    def problems(split: str) -> list[list[str]]:
        context = Context(random.Random(3), split)  # type: ignore[arg-type]
        drawn = [draw(context, "story", 0.0) for _ in range(600)]
        assert all(line.good for solution in drawn for line in solution.lines)
        return [re.findall(r"\d+", solution.problem) for solution in drawn]

    # No story of the table gives more than four numbers, the measured ones are only of the table.
    given = problems("train")
    context = Context(random.Random(5))
    titled = [draw(context, "story", 0.0).problem for _ in range(2000)]
    assert all(re.findall(r"Mrs?\. (?!Lee|Shah)", text) == [] for text in titled)
    assert 0.05 < sum(len(numbers) > 4 for numbers in given) / len(given) < 0.4
    assert max(map(len, problems("heldout"))) <= 4


def test_a_number_beside_the_point_is_no_misreading() -> None:
    context = Context(random.Random(4))
    misread = 0
    for _ in range(1500):
        solution = draw(context, "story", 0.5)
        for line in solution.lines:
            if line.error == "misread" and "=" in line.text:
                misread += 1
                before = solution.problem + " ".join(
                    other.text for other in solution.lines[: solution.lines.index(line)]
                )
                known = set(re.findall(r"\d+", before))
                used = set(re.findall(r"\d+", line.text.partition("=")[0]))
                assert used - known, (solution.problem, line.text)
    assert misread > 50


def test_linear_solutions_may_keep_their_numbers_before_the_letter() -> None:
    def first_terms(orders: float) -> list[str]:
        context = Context(random.Random(8), orders=orders)
        found = []
        for _ in range(800):
            solution = equations.solution(context, 0.0)
            assert all(line.good for line in solution.lines)
            found += re.findall(r"(?:^|: |=\s*)(\d+) ?[+\-\u2212] ?\d*[a-z]\b", "\n".join(
                line.text for line in solution.lines[1:]
            ), re.MULTILINE)  # fmt: skip
        return found

    assert len(first_terms(1.0)) > 3 * len(first_terms(0.0)) + 50


def test_a_negative_letter_is_taken_across() -> None:
    sides = ([("c", Fraction(11)), ("v", Fraction(-2))], [("c", Fraction(1))])
    rng = random.Random(1)
    move = linear.across(rng, sides, False)
    assert move is not None
    assert linear.write(move.sides, False) == "11=2x+1"
    assert [linear.constants_first(side) for side in move.sides][1][0] == ("c", Fraction(1))
    for _, wrong in move.wrong:
        assert not equivalent("11-2x=1", linear.write(wrong, False))
    bracket = ([("b", Fraction(-2), sides[0])], [("c", Fraction(1))])
    alone = ([("v", Fraction(-2))], [("c", Fraction(1))])
    both = (sides[0], [("v", Fraction(3))])
    positive = ([("c", Fraction(11)), ("v", Fraction(2))], [("c", Fraction(1))])
    assert all(linear.across(rng, s, False) is None for s in (bracket, alone, both, positive))


def test_paraphrase_keeps_every_slot_and_moves_only_the_formula() -> None:
    pools = [*words.MOVES.values(), words.ANY, words.WORKED, words.REASON, words.PROBLEMS]
    changed = moved = 0
    for seed in range(3000):
        rng = random.Random(seed)
        wording = rng.choice(rng.choice(pools))
        other = paraphrase(rng, wording)
        slots = re.findall(r"\{\w+\}", wording)
        found = re.findall(r"\{\w+\}", other)
        assert sorted(found) == sorted(slots)
        if found != slots:
            assert not {"{w}", "{r}"} & {*slots}  # the working comes before what follows from it
            moved += 1
        assert not re.search(r"\}\{|\w\{|\}\w|\d", other.replace("-1", ""))
        assert all(f"- {slot}" not in other for slot in slots)  # it would read as a minus
        changed += other != wording
    assert changed > 2500
    assert moved > 100


def check_lines(problem: str, solved: str, number: int) -> Iterator[Line]:
    """Lines that put `solved` into the linear equation `problem`, in formulas that can be read."""
    plain = Style("none", "*", "/", "-", False, ("", ""), {"x": "x"})
    for seed in range(number):
        context = Context(random.Random(seed), loose=0.01, near=0.5)  # its words stay
        walk = equations.Walk(context, plain, False, ([], []), solved, 0.0)
        equations._check_line(walk, problem, True)
        yield from walk.lines


@pytest.mark.parametrize(
    ("problem", "solved", "wanted"),
    [
        ("7x-4=3x+16", "x=5", {"7*5-4=31", "3*5+16=31", "35-4=15+16", "7*5-4=3*5+16"}),
        ("2-3x=-2x+5", "x=-3", {"2-3*(-3)=11", "2-(-9)=-(-6)+5", "2-3*(-3)=-2*(-3)+5"}),
        ("2(x+1)-3x=-4", "x=6", {"2(6+1)-3*6=-4"}),
    ],
)
def test_check_lines_are_true_or_false(problem: str, solved: str, wanted: set[str]) -> None:
    seen, right, both = set(), 0, 0
    for line in check_lines(problem, solved, 1500):
        chains = re.findall(r"[-+*/()\d]+=[-+*/()\d=]*[\d)]", line.text)
        assert chains
        assert line.good == all(map(true_chain, chains)), line
        right += bool(line.good)
        both += len(chains) == 2
        seen.update(chains)
    assert wanted <= seen
    assert 400 < right < 1400
    assert both > 100 or problem.endswith("=-4")


def test_products_are_worked_out_outside_brackets() -> None:
    assert equations._products("7*5-4") == "35-4"
    assert equations._products("-2*(-3)+5*(-1)") == "-(-6)+(-5)"
    assert equations._products("2*(-3)") == "-6"
    assert equations._products("2(3*4+1)") == "2(3*4+1)"


def test_around_keeps_phrases_with_words_of_their_own() -> None:
    kept = {"{a}": ("{0} m", "{0} metres"), "{m}": ("{1} cm", "{1} centimetres"), "{n}": ("m",)}
    written = set()
    for seed in range(500):
        rng = random.Random(seed)
        says = around(rng, "So {0} metres have {1} centimetres.", kept)
        assert says.count("{0} metres") == says.count("{1} centimetres") == 1
        asks = around(rng, "Are {0} cm anything in m?", kept)  # a phrase of another slot
        assert re.search(r"\{0\}.*\bm\b|\bm\b.*\{0\}", asks)
        assert set(re.findall(r"\{\w+\}", says + asks)) == {"{0}", "{1}"}
        written.add(says)
    assert len(written) > 300
    assert any(says.index("{1}") < says.index("{0}") for says in written)


def test_facts_in_other_words_are_still_true_or_false() -> None:
    right = re.compile(r"(-?\d[\d.]*) (?:kilometres|km)\b|(-?\d[\d.]*) (?:metres|m)\b")
    seen = 0
    for seed in range(4000):
        fact = draw(Context(random.Random(seed), loose=1.0), "fact", 0.5)
        line = fact.lines[0]
        numbers = [m.groups() for m in right.finditer(line.text)]
        big = [float(b) for b, _ in numbers if b]
        small = [float(s) for _, s in numbers if s]
        if len(big) == len(small) == 1:
            assert line.good == (small[0] == 1000 * big[0]), line
            seen += 1
    assert seen > 50


def test_held_out_wordings_are_never_put_into_other_words() -> None:
    heldout = Context(random.Random(0), "heldout", loose=1.0)
    assert {heldout.frame(words.ANY) for _ in range(100)} <= set(words.ANY)
    loose = Context(random.Random(0), loose=1.0)
    assert not {loose.frame(words.ANY) for _ in range(100)} <= set(words.ANY)


def test_free_equations_are_none_of_the_held_out_shapes() -> None:
    context = Context(random.Random(3), loose=1.0)
    kinds = set()
    for _ in range(2000):
        _, walk, shape = equations.start(context)
        assert shape == shapes.FREE
        (a, b), (c, d) = map(total, walk.sides)
        solution = (d - b) / (a - c)
        assert solution.denominator == 1
        kinds.add(shapes.kinds(walk.sides))
    assert not kinds & shapes.HELD_OUT
    assert len(kinds) > 30


@pytest.mark.parametrize("shape", [s for i, s in enumerate(shapes.SHAPES) if i % 5 == 4])
def test_what_is_held_out_is_known_by_its_terms(shape: str) -> None:
    context = Context(random.Random(1))
    # a chance adds a lone letter to a side of few
    kinds = [shapes.kinds(shapes.draw_sides(context, shape, False)) for _ in range(50)]
    assert max(kinds, key=kinds.count) in shapes.HELD_OUT


def test_low_levels_draw_small_sums() -> None:
    easy = [draw(Context(random.Random(seed), level=0.0), "sums", 0.0) for seed in range(50)]
    numbers = [int(n) for s in easy for line in s.lines for n in re.findall(r"\d+", line.text)]
    assert max(numbers) <= 400  # products and quotients of factors up to 40 by 10


def test_weights_move_from_sums_to_the_mixture() -> None:
    early, middle, late = (weights(share, "small") for share in (0.0, 0.25, 0.5))
    assert [EARLY[name] for name in FAMILIES | LESSONS] == early
    assert late == weights(1.0) == [w for _, w in (FAMILIES | LESSONS).values()]
    assert all(min(a, c) <= b <= max(a, c) for a, b, c in zip(early, middle, late, strict=True))
    assert weights(0.0) == late


def test_the_kinds_are_fitted_without_lessons_and_with_fewer_drafts() -> None:
    found = dict(zip(FAMILIES | LESSONS, weights(1.0, "whole"), strict=True))
    assert found.pop("draft") < FAMILIES["draft"][1]
    whole = {name: w for name, (_, w) in FAMILIES.items() if name != "draft"}
    assert found == whole | dict.fromkeys(LESSONS, 0.0)


def test_a_run_may_begin_with_drills_alone() -> None:
    for share in (0.0, 0.4):
        found = dict(zip(FAMILIES | LESSONS, weights(share, "drills"), strict=True))
        assert [name for name, weight in found.items() if weight] == ["drills", "moves"]
    assert weights(0.6, "drills") == pytest.approx(weights(1.0))
    assert min(weights(0.5, "drills")) > 0


def test_same_answer_drafts_agree_and_cancel() -> None:
    for seed in range(30):
        clean, broken = equations.same_answer(Context(random.Random(seed)), [False, True])
        assert clean.problem == broken.problem
        assert clean.first_error == -1
        assert [line.good for line in broken.lines].count(False) == 2
        assert broken.lines[-1].good


def test_context_pick_keeps_held_out_entries_apart() -> None:
    pool = list(range(20))
    train = {Context(random.Random(s)).pick(pool) for s in range(300)}
    held = {Context(random.Random(s), "heldout").pick(pool) for s in range(300)}
    assert held == {4, 9, 14, 19}
    assert not train & held


@pytest.mark.parametrize(
    ("style", "shown"),
    [
        (Style("all", "×", "÷", "-", False, ("", ""), {"x": "y"}), "3y - 4 × 2 = -5"),
        (Style("none", "*", "/", "−", False, ("", ""), {"x": "x"}), "3x−4*2=−5"),
        (Style("equals", "\\cdot", "/", "-", True, ("$", "$"), {"x": "n"}), "$3n-4\\cdot 2 = -5$"),
    ],
)
def test_style_renders_one_formula_many_ways(style: Style, shown: str) -> None:
    assert style.math("3x-4*2=-5") == shown


def test_a_slash_has_spaces_in_training_alone() -> None:
    wide = Style("all", "*", "/", "-", False, ("", ""), {"x": "x"}, wide_slash=True)
    assert wide.math("(x-3)/4=2*x/-5") == "(x - 3) / 4 = 2 * x / -5"
    assert replace(wide, spaced="equals").math("x/4=3") == "x/4 = 3"
    drawn = [[make_style(Context(random.Random(seed), loose=loose)) for seed in range(200)]
             for loose in (0.0, 0.5)]  # fmt: skip
    assert not any(style.wide_slash for style in drawn[0])
    assert 50 < sum(style.wide_slash for style in drawn[1]) < 120
    assert [replace(style, wide_slash=False) for style in drawn[1]] == drawn[0]


def test_style_writes_latex_fractions() -> None:
    style = Style("none", "*", "/", "-", True, ("", ""), {"x": "x"})
    assert style.math("(x+3)/4=2x/5") == "\\frac{x+3}{4}=\\frac{2x}{5}"


def test_value_refuses_letters() -> None:
    with pytest.raises(AlgebraError, match="not a number"):
        value("3x")


def test_drills_are_half_wrong_and_mostly_by_a_little() -> None:
    bare = re.compile(r"[\d+\-*/()=x]+")
    right, near, far = 0, 0, 0
    for seed in range(600):
        solution = equations.drills(Context(random.Random(seed)), 0.3)
        lines = [solution.problem, *(line.text for line in solution.lines)]
        for line, before, text in zip(solution.lines, lines, lines[1:], strict=False):
            if not (bare.fullmatch(before) and bare.fullmatch(text)) or text.count("=") != 1:
                continue
            assert equivalent(before, text) is line.good
            if line.good:
                right += 1
            elif line.error == "slip":
                near += 1
            else:
                far += 1
    assert 0.4 < right / (right + near + far) < 0.6
    assert near > 2 * far


@pytest.mark.parametrize("seed", range(40))
def test_near_equation_changes_one_number_a_little(seed: int) -> None:
    change = near_equation(random.Random(seed), "3x+5+7=20", "3x+12=20")
    assert change is not None
    assert change[1] == "slip"
    number = re.fullmatch(r"3x\+(\d+)=20", change[0])  # 3 and 20 stood there before
    assert number is not None
    assert 0 < abs(int(number[1]) - 12) <= 20
    assert near_equation(random.Random(seed), "x=y", "y=x") is None


def plain(text: str) -> bool:
    """Whether its signs are those of the generator's own texts: no dots, LaTeX or x for times."""
    return text.isascii() and "\\" not in text and "$" not in text and "x" not in text


def test_tales_are_good_where_the_sum_holds_and_its_numbers_are_known() -> None:
    checked = {True: 0, False: 0}
    for seed in range(800):
        solution = tales.solution(Context(random.Random(seed)), 0.4)
        known = set(re.findall(r"\d+", solution.problem)) | set("237") | {"10", "12", "60", "100"}
        for line in solution.lines:
            found = re.search(
                r"(?<![\d.,+\-*/(])(\d+)([+\-*/])(\d+)=(\d+)(?!,?\d|[.+\-*/=]\d)", line.text
            )
            if found is None or not plain(line.text):  # with spaces, say, or dollars
                known |= set(re.findall(r"\d+", line.text))
                continue
            holds = value(found[1] + found[2] + found[3]) == value(found[4])
            if line.good:
                assert holds
                assert {found[1], found[3]} <= known, (solution.problem, line.text)
            elif line.error == "misread":
                assert holds
                assert not {found[1], found[3]} <= known, (solution.problem, line.text)
            else:
                assert not holds
            known |= set(re.findall(r"\d+", line.text))
            checked[line.good is True] += 1
    assert min(checked.values()) > 50


def test_percent_shares_and_changes_hold_where_they_are_good() -> None:
    checked = {True: 0, False: 0}
    for seed in range(800):
        solution = percent.solution(Context(random.Random(seed)), 0.4)
        for line in solution.lines:
            sums = re.findall(r"(?<![\d.])([\d.]+(?:[+\-*/][\d.]+)+)=(\d+)(?![\d%])", line.text)
            if not plain(line.text):
                continue
            holds = all(value(left) == value(right) for left, right in sums)
            if line.good:
                assert holds, line.text
            if sums:
                checked[line.good is True] += 1
    assert min(checked.values()) > 50


def test_parts_are_what_their_percent_say() -> None:
    for percents, (divisor, _) in percent.PARTS.items():
        assert Fraction(1, divisor) == Fraction(percents, 100)
