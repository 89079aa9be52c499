// Several drafts of one problem: which is served, and where the others break.

import { Refused, askPatiently } from "./api.js";
import { element, lineItem } from "./marked.js";
import { STATUS_WORDS, Solution } from "./solutions.js";
import { wordsFor } from "./words.js";

const MOST = 8;
const byId = (id) => document.getElementById(id);

export class Drafts {
  // `context()`: info, teacher. `changed()`: called when a mark or the drafts change.
  constructor(connection, context, changed) {
    this.connection = connection;
    this.context = context;
    this.changed = changed;
    this.problem = "";
    this.solutions = []; // in the order in which they were written
    this.ranking = null;
    byId("add-draft").addEventListener("click", () => {
      this.#addField("");
      byId("drafts").lastElementChild.querySelector("textarea").focus();
    });
    byId("drafts-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#choose();
    });
  }

  begin(problem, texts) {
    this.problem = problem;
    this.solutions = [];
    this.ranking = null;
    byId("drafts").replaceChildren();
    const given = texts.length ? texts : [[], []];
    for (const lines of given) this.#addField(lines.join("\n"));
    byId("drafts-error").textContent = "";
    byId("drafts-box").open = true;
    this.draw();
  }

  #fields() {
    return [...byId("drafts").querySelectorAll("textarea")];
  }

  #addField(text) {
    const field = element("textarea", { value: text, spellcheck: false, maxLength: 8000 });
    field.rows = Math.max(3, text.split("\n").length);
    const label = element("label", {}, element("span"), field);
    const remove = element("button", { type: "button", className: "link", textContent: "Remove" });
    const item = element("li", {}, label, remove);
    remove.addEventListener("click", () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      this.#number();
      (next?.querySelector("textarea") ?? byId("add-draft")).focus();
    });
    byId("drafts").append(item);
    this.#number();
  }

  #number() {
    [...byId("drafts").children].forEach((item, index) => {
      item.querySelector("label span").textContent = `Draft ${index + 1}`;
      item.querySelector("button").ariaLabel = `Remove draft ${index + 1}`;
    });
    byId("add-draft").disabled = byId("drafts").children.length >= MOST;
  }

  async #choose() {
    const texts = this.#fields().map((field) =>
      field.value.split("\n").map((line) => line.trim()).filter(Boolean));
    const empty = texts.findIndex((lines) => lines.length === 0);
    const error = byId("drafts-error");
    error.textContent = "";
    if (texts.length === 0 || empty >= 0) {
      error.textContent = texts.length ? `Draft ${empty + 1} is empty.` : "There is no draft.";
      this.#fields()[Math.max(0, empty)]?.focus();
      return;
    }
    const { problem } = this;
    byId("choose").disabled = true;
    try {
      const ranking = await askPatiently(
        this.connection, "POST", "/v1/rank", { problem, candidates: texts },
        (seconds) => { error.textContent = `The server is busy; trying again in ${seconds} s.`; });
      if (problem !== this.problem) return; // another problem was begun meanwhile
      this.ranking = ranking;
      this.solutions = texts.map((lines, index) => {
        const told = { ...ranking.candidates[index] };
        for (const key of ["threshold", "package", "variant"]) told[key] = ranking[key];
        return new Solution(problem, `Draft ${index + 1}`).judge(lines, told);
      });
      error.textContent = "";
      byId("drafts-box").open = false;
      this.draw();
      this.changed();
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      error.textContent = refused.message;
    } finally {
      byId("choose").disabled = false;
    }
  }

  // Draw what was found, the served one first.
  draw() {
    const { ranking, solutions } = this;
    byId("outcome").textContent = ranking === null ? "" : this.#outcome();
    byId("outcome").className = `outcome ${ranking === null || this.served === null ? "none" : "some"}`;
    byId("drafts-summary").textContent = ranking === null ? "Write the drafts" : "Change the drafts";
    const served = ranking === null ? null : this.served;
    const order = ranking === null ? [] : [...ranking.order];
    if (served !== null) order.sort((a, b) => (b === served) - (a === served));
    byId("ranked").replaceChildren(...order.map((index) => this.#draft(solutions[index], index)));
  }

  // Index of the draft that is served, or null: the model's choice, unless a teacher changed a mark.
  get served() {
    const { best_sound: best, order } = this.ranking;
    if (this.solutions.every((solution) => solution.overruled.length === 0)) return best;
    return order.find((index) => this.solutions[index].sound) ?? null;
  }

  #outcome() {
    const { served } = this;
    if (served !== null) return `Draft ${served + 1} is served.`;
    const unknown = this.solutions.filter((one) => !one.sound && one.broken === null).length;
    if (unknown === this.solutions.length) return "None is served: none could be judged.";
    if (unknown) return "None is served: no draft that could be judged is sound.";
    return "None is served: in every draft a line looks wrong.";
  }

  #draft(solution, index) {
    const { info, teacher } = this.context();
    const served = this.served === index;
    const lines = element("ol", { ariaLabel: `Lines of draft ${index + 1}` });
    const onMark = (line, good, focus) => {
      solution.setMark(line, good);
      this.draw();
      document.getElementById(focus)?.focus();
      this.changed();
    };
    const options = { info, teacher, onMark, group: `draft-${index}` };
    lines.append(...solution.lines.map((_, line) => lineItem(solution, line, options)));
    return element(
      "li",
      { className: `paper draft${served ? " served" : ""}` },
      element(
        "h3",
        {},
        element("span", { textContent: `Draft ${index + 1}` }),
        element("span", { className: "fate", textContent: served ? "served" : "not served" }),
      ),
      element("p", { className: "why", textContent: this.#why(solution, served) }),
      lines,
    );
  }

  #why(solution, served) {
    const words = wordsFor(this.context().info.label_meaning);
    const by = this.ranking.by;
    const of = `${by} of its scores: ${solution.aggregates[by]?.toFixed(2) ?? "none"}`;
    if (served) return `${words.sound} The best of the sound ones (${of}).`;
    if (solution.broken !== null) return words.broken(solution.broken + 1);
    if (solution.sound) return `Sound too, but another scores higher (${of}).`;
    const statuses = new Set(solution.lines.map((line) => line.status).filter((s) => s !== "scored"));
    return [...statuses].map((status) => STATUS_WORDS[status] ?? status).join("; ") || "Not judged.";
  }
}
