// Solutions, what the model said of their lines, and what a teacher said instead.

export const STATUS_WORDS = {
  out_of_domain: "not judged: outside what the built-in model was trained on",
  too_long: "not judged: beyond the length that the model can read",
};

export class Solution {
  // `label`: how the page calls it. `marks`: line index -> the teacher's own mark.
  constructor(problem, label) {
    this.problem = problem;
    this.label = label;
    this.lines = [];
    this.firstError = null;
    this.verdict = "unknown";
    this.package = null;
    this.variant = null;
    this.marks = new Map();
  }

  // Take over what the server said: of a session, or of one candidate.
  judge(texts, told) {
    const kept = this.lines;
    this.lines = texts.map((text, index) => ({
      text,
      score: told.scores[index] ?? null,
      status: told.status?.[index] ?? "scored",
      redundancy: told.redundancy?.[index] ?? null,
      errorKind: told.error_kinds?.[index] ?? null,
    }));
    for (const index of this.marks.keys()) {
      if (kept[index]?.text !== texts[index]) this.marks.delete(index);
    }
    this.firstError = told.first_error;
    this.verdict = told.verdict;
    this.aggregates = told.aggregate ?? {};
    this.threshold = told.threshold ?? this.threshold;
    this.package = told.package ?? this.package;
    this.variant = told.variant ?? this.variant;
    return this;
  }

  // true, false, or null where the model has no score.
  modelMark(index) {
    const { score } = this.lines[index];
    return score === null ? null : score >= this.threshold;
  }

  mark(index) {
    return this.marks.get(index) ?? this.modelMark(index);
  }

  isOverruled(index) {
    return this.marks.has(index) && this.marks.get(index) !== this.modelMark(index);
  }

  // What the model takes a line for; null where it names nothing, and where the teacher overruled it.
  errorKind(index) {
    return this.modelMark(index) === false && !this.isOverruled(index)
      ? this.lines[index].errorKind ?? null : null;
  }

  // A mark that the model gave too is no overruling, and is forgotten.
  setMark(index, good) {
    if (good === this.modelMark(index)) this.marks.delete(index);
    else this.marks.set(index, good);
  }

  // Index of the first line that looks wrong, the teacher's marks counted; null if there is none.
  get broken() {
    for (let index = 0; index < this.lines.length; index++) {
      const mark = this.mark(index);
      if (mark === null) return null;
      if (!mark) return index;
    }
    return null;
  }

  get sound() {
    return this.lines.length > 0 && this.lines.every((_, index) => this.mark(index) === true);
  }

  get overruled() {
    return this.lines.map((_, index) => index).filter((index) => this.isOverruled(index));
  }

  // One record of TRL's stepwise supervision, or null where the teacher agrees with the model.
  //
  // It ends before the first line that nobody marked, and, where the model's labels mean nothing
  // after the first error, with that error.
  record(labelMeaning) {
    const labels = [];
    for (let index = 0; index < this.lines.length; index++) {
      const mark = this.mark(index);
      if (mark === null) break;
      labels.push(mark);
      if (!mark && labelMeaning === "until_first_error") break;
    }
    const overruled = this.overruled.filter((index) => index < labels.length);
    if (overruled.length === 0) return null;
    const lines = this.lines.slice(0, labels.length);
    return {
      prompt: this.problem,
      completions: lines.map((line) => line.text),
      labels,
      overruled,
      model_scores: lines.map((line) => line.score),
      package: this.package,
      variant: this.variant,
    };
  }

  toData() {
    return { ...this, marks: [...this.marks] };
  }

  static fromData(data) {
    return Object.assign(new Solution(data.problem, data.label), data, { marks: new Map(data.marks) });
  }
}
