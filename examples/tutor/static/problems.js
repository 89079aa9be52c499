// Problems to begin with, each with drafts as a language model might write them.

export const PROBLEMS = [
  {
    problem: "Solve for x: 3x + 7 = 22.",
    drafts: [
      ["3x + 7 - 7 = 22 + 7", "3x = 15", "x = 5"], // right answer, two errors that cancel
      ["3x + 7 - 7 = 22 - 7", "3x = 15", "x = 5"],
      ["3x + 7 - 7 = 22 - 7", "3x = 15", "x = 12"],
    ],
  },
  {
    problem: "Solve for x: 5 - 2(x - 3) = 1.",
    drafts: [
      ["5 - 2x + 6 = 1", "11 - 2x = 1", "-2x = 10", "x = 5"], // the same again
      ["5 - 2x + 6 = 1", "11 - 2x = 1", "-2x = -10", "x = 5"],
      ["5 - 2x - 6 = 1", "-1 - 2x = 1", "-2x = 2", "x = -1"],
    ],
  },
  {
    problem: "Solve for x: 7x - 4 = 3x + 16.",
    drafts: [
      ["4x - 4 = 16", "4x = 20", "x = 5"],
      ["10x - 4 = 16", "10x = 20", "x = 2"],
    ],
  },
  {
    problem:
      "A jacket costs $80. Its price is cut by 25%, then the new price is raised by 25%. " +
      "What does it cost in the end?",
    drafts: [
      ["After the cut it costs 80 - 20 = $60.", "The raise of 25% adds the same $20 again.",
        "In the end it costs 60 + 20 = $80."],
      ["After the cut it costs 80 - 20 = $60.", "25% of 60 is 15.",
        "In the end it costs 60 + 15 = $75."],
    ],
  },
];
