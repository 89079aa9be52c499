// Draws the lines of a solution with their marks. All text is set as text, never as HTML.

import { STATUS_WORDS } from "./solutions.js";
import { looksLike, shownScore, wordsFor } from "./words.js";

const SIGNS = { good: "✓", bad: "✗", unknown: "–" };
const REDUNDANT = 0.5;

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// `info`: of the server. `teacher`: whether marks can be overruled, which calls `onMark`. `onRetry`:
// given where a line can be written again. `group`: names the solution among those of the page.
export function lineItem(solution, index, { info, teacher, onMark, onRetry, group }) {
  const line = solution.lines[index];
  const { broken } = solution;
  const afterError =
    info.label_meaning === "until_first_error" &&
    broken !== null && index > broken && !solution.marks.has(index);
  const mark = afterError ? null : solution.mark(index);
  const kind = mark === null ? "unknown" : mark ? "good" : "bad";
  const isFirst = index === broken;
  const words = wordsFor(info.label_meaning);

  const item = element("li", { className: `line ${kind}${isFirst ? " first" : ""}` });
  item.append(
    element("span", { className: "sign", ariaHidden: "true", textContent: SIGNS[kind] }),
    element("span", { className: "text", textContent: line.text }),
    verdict(solution, index, { info, words, afterError }),
  );
  const seen = afterError ? null : looksLike(info, solution.errorKind(index));
  if (seen !== null) item.append(element("p", { className: "kind", textContent: seen }));
  if (isFirst && onRetry) {
    const told = solution.isOverruled(index) ? "The teacher marked this line as wrong." : words.first;
    const again = element("button", { type: "button", className: "link", textContent: "Write it again" });
    again.addEventListener("click", () => onRetry(index));
    item.append(element("p", { className: "look", textContent: told }, " ", again));
  }
  if (teacher) item.append(marking(solution, index, { group, onMark }));
  return item;
}

function verdict(solution, index, { info, words, afterError }) {
  const { score, status, redundancy } = solution.lines[index];
  const shown = element("span", { className: "verdict" });
  const model = solution.modelMark(index);
  if (solution.isOverruled(index)) {
    const said = solution.marks.get(index) ? "right" : "wrong";
    shown.classList.add("overruled");
    shown.append(element("span", { className: "badge", textContent: `teacher: ${said}` }), " ");
  }
  if (model === null) {
    shown.append(STATUS_WORDS[status] ?? `not judged: ${status}`);
    return shown;
  }
  const word = afterError ? "after the first error, not judged" : model ? words.good : words.bad;
  shown.append(element("span", { className: "word", textContent: word }));
  if (!afterError) shown.append(" ", meter(score, solution.threshold, info.score_range));
  shown.append(
    " ",
    element("span", { className: "unseen", textContent: "score" }),
    " ",
    element("span", { className: "score", textContent: shownScore(score), title: `score ${score}` }),
  );
  if (redundancy !== null && redundancy >= REDUNDANT) {
    const told = `redundant ${shownScore(redundancy)}`;
    shown.append(" ", element("span", { className: "badge plain", textContent: told }));
  }
  return shown;
}

// A bar over the range of the scores, with the threshold as a tick; none where there is no range.
function meter(score, threshold, range) {
  if (!range) return "";
  const [low, high] = range;
  const percent = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const bar = element("span", { className: "meter", ariaHidden: "true" });
  const fill = element("span", { className: "fill" });
  const tick = element("span", { className: "tick" });
  fill.style.width = percent(score);
  tick.style.left = percent(threshold);
  bar.append(fill, tick);
  return bar;
}

function marking(solution, index, { group, onMark }) {
  const name = `mark-${group}-${index}`;
  const set = element("fieldset", { className: "marking" });
  set.append(
    element(
      "legend",
      { textContent: "Your mark" },
      element("span", { className: "unseen", textContent: ` for line ${index + 1}` }),
    ),
  );
  for (const [word, good] of [["right", true], ["wrong", false]]) {
    const input = element("input", { type: "radio", name, checked: solution.mark(index) === good });
    input.id = `${name}-${word}`;
    input.addEventListener("change", () => onMark(index, good, input.id));
    set.append(element("label", {}, input, ` ${word}`));
  }
  return set;
}
