// What a mark means depends on what the model was trained to judge; see `label_meaning` of /info.

const MEANINGS = {
  local: {
    good: "follows",
    bad: "doubtful",
    first: "Look here first: this line does not seem to follow from the ones before it.",
    sound: "Every line seems to follow from the ones before it.",
    broken: (n) => `Line ${n} does not seem to follow.`,
  },
  on_path: {
    good: "still on the way",
    bad: "doubtful",
    first: "Look here first: from this line on, the right answer seems out of reach.",
    sound: "Every line seems to be on the way to the answer.",
    broken: (n) => `Line ${n} seems to leave the way to the answer.`,
  },
  until_first_error: {
    good: "right so far",
    bad: "doubtful",
    first: "Look here first: this seems to be the first wrong line.",
    sound: "Every line seems right.",
    broken: (n) => `Line ${n} seems wrong.`,
  },
};

export const wordsFor = (meaning) => MEANINGS[meaning] ?? MEANINGS.local;

// What the model takes an error for, where it names them; null where there is nothing to say.
export const looksLike = (info, kind) =>
  kind === null ? null : `Looks like ${info.error_kinds?.[kind] ?? kind.replaceAll("_", " ")}.`;

export const shownScore = (score) => score.toFixed(2);

export const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
