// The page: load the package, test it, score what is written. Text is set as text, never as HTML.

import { Prm } from "./prm.js";

const byId = (id) => document.getElementById(id);

function item(step, score, threshold) {
  const good = score >= threshold;
  const made = document.createElement("li");
  const cells = [
    [good ? "✓" : "✗", good ? "good" : "bad"],
    [step, ""],
    [`${good ? "follows" : "doubtful"} ${score.toFixed(2)}`, `score ${good ? "good" : "bad"}`],
  ];
  for (const [text, kind] of cells) {
    const cell = document.createElement("span");
    cell.textContent = text;
    cell.className = kind;
    made.append(cell);
  }
  made.firstChild.ariaHidden = "true";
  return made;
}

async function show(prm) {
  const problem = byId("problem").value.trim();
  const steps = byId("steps").value.split("\n").map((step) => step.trim()).filter(Boolean);
  byId("error").textContent = "";
  byId("verdict").textContent = "";
  byId("scored").replaceChildren();
  const outside = prm.outside(problem, steps);
  if (outside !== null) {
    byId("error").textContent = `Not judged: outside what this model was trained on: ${outside}.`;
    return;
  }
  const scores = await prm.score(problem, steps);
  const first = prm.firstError(scores);
  byId("scored").replaceChildren(...steps.map((step, index) => item(step, scores[index], prm.threshold)));
  byId("verdict").textContent =
    first === null ? "Every line seems to follow." : `Look at line ${first + 1} first.`;
}

try {
  const prm = await Prm.load("package");
  const largest = await prm.selfTest();
  const { notice } = prm.manifest.provenance;
  byId("notice").hidden = !notice;
  byId("notice").textContent = notice ? `About these scores: ${notice}.` : "";
  byId("state").textContent =
    `Ready: ${prm.manifest.name} (${prm.variant}); its stored cases come out as torch scored them, ` +
    `to ${largest.toExponential(1)}.`;
  byId("score").disabled = false;
  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("score").disabled = true;
    await show(prm).catch((error) => { byId("error").textContent = error.message; });
    byId("score").disabled = false;
  });
} catch (error) {
  byId("state").textContent = "";
  byId("error").textContent = `The model cannot be used: ${error.message}`;
}
document.body.dataset.ready = "yes";
