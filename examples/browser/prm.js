// A prm-edge package in the browser: onnxruntime-web and @huggingface/tokenizers, no server.
//
// Reads packages of TRL's layout (`encode: separate`, a softmax at a token after each step) with a
// decoder graph for the CPU. Everything else is refused by name: a wrong score is worse than none.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

const FORMAT_VERSION = 1;
const TILE = 16; // a run never has a length of 1 modulo this; see prm_edge_runtime/engine.py
// LaTeX command | word of two letters or more | sign; as prm_edge_runtime/domain.py
const UNITS = /\\[A-Za-z]+|\p{L}{2,}|[^\p{L}\p{N}_\s]/gu;

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;

export class PackageError extends Error {}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const parse = (bytes) => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));

export class Prm {
  // `base`: URL of the package's folder. `variant`: its name; default: the first for the CPU.
  static async load(base, variant = null) {
    const at = new URL(base.endsWith("/") ? base : `${base}/`, document.baseURI);
    const fetched = async (path) => {
      const answer = await fetch(new URL(path, at));
      if (!answer.ok) throw new PackageError(`${path} cannot be read (${answer.status})`);
      return answer.arrayBuffer();
    };
    const manifest = parse(await fetched("prm_edge.json"));
    if (manifest.format_version !== FORMAT_VERSION) {
      throw new PackageError(`format version ${manifest.format_version} is not known; 1 is`);
    }
    const read = async (path) => {
      const known = manifest.files[path];
      if (!known) throw new PackageError(`${path} is not listed in prm_edge.json`);
      const bytes = await fetched(path);
      const digest = hex(await crypto.subtle.digest("SHA-256", bytes));
      if (bytes.byteLength !== known.size || digest !== known.sha256) {
        throw new PackageError(`${path} is damaged: its size or SHA-256 is not the manifest's`);
      }
      return bytes;
    };
    const prm = new Prm(manifest, chosen(manifest, variant), read);
    await prm.#open();
    return prm;
  }

  constructor(manifest, variant, read) {
    this.manifest = manifest;
    this.variant = variant;
    this.recipe = checkedRecipe(manifest.recipe);
    this.about = manifest.variants[variant];
    this.threshold = manifest.thresholds[variant] ?? manifest.thresholds.default;
    this.maxTokens = manifest.limits.max_tokens;
    this.read = read;
  }

  async #open() {
    const raw = parse(await this.read("tokenizer.json"));
    // text must never become an added token: a student who types one must not shift the scores
    const changed = { pre_tokenizer: withAllDigits(raw.pre_tokenizer), truncation: null, padding: null };
    this.tokenizer = new Tokenizer({ ...raw, ...changed, added_tokens: [] }, {});
    const special = (raw.added_tokens ?? []).filter((token) => token.special);
    this.forbidden = new Set(special.map((token) => token.id));
    if ("domain.json" in this.manifest.files) {
      const { known, max_unknown: most } = parse(await this.read("domain.json"));
      this.domain = { known: new Set(known), most };
    }
    this.opening = opening(this.about, this.about.prefix && (await this.read(this.about.prefix.file)));
    const folder = this.about.graph.replace(/[^/]*$/, "");
    const data = this.about.files.filter((path) => path.startsWith(folder) && path.endsWith(".data"));
    const externalData = await Promise.all(
      data.map(async (path) => ({ path: path.slice(folder.length), data: await this.read(path) })));
    this.session = await ort.InferenceSession.create(await this.read(this.about.graph), {
      executionProviders: ["wasm"],
      externalData,
      extra: { session: { x64quantprecision: "1" } },
    });
  }

  // Token ids of a record, up to the last score, and where each step's score is read.
  encode(problem, steps) {
    const ids = [];
    const reads = [];
    const text = (value) => {
      const found = value === "" ? [] : this.tokenizer.encode(value, { add_special_tokens: false }).ids;
      if (found.some((id) => this.forbidden.has(id))) {
        throw new RangeError("the text spells a special token, which would shift the scores");
      }
      ids.push(...found);
    };
    const lay = (parts, slots) => {
      for (const part of parts) {
        if (part.text !== undefined) text(part.text);
        else if (part.slot !== undefined) text(part.strip ? slots[part.slot].trim() : slots[part.slot]);
        else {
          if (part.read !== undefined && part.read !== null) {
            reads.push(ids.length + (part.read < 0 ? part.tokens.length + part.read : part.read));
          }
          ids.push(...part.tokens);
        }
      }
    };
    lay(this.recipe.prompt, { problem });
    steps.forEach((step, index) => {
      if (index) lay(this.recipe.between, {});
      lay(this.recipe.step, { step });
    });
    if (reads.length !== steps.length) throw new RangeError("not one read position for each step");
    return { ids: reads.length ? ids.slice(0, reads.at(-1) + 1) : ids, reads };
  }

  // Why a record is plainly outside what the model was trained on; null where it may be inside.
  outside(problem, steps) {
    if (!this.domain) return null;
    const whole = [problem, ...steps].join("\n");
    if (!/\p{Nd}/u.test(whole)) return "it holds no number";
    const found = [...new Set(whole.match(UNITS) ?? [])];
    const unseen = found.filter((unit) => !this.domain.known.has(unit.toLowerCase()));
    const counted = unseen.filter((unit) => !/^\p{Lu}/u.test(unit));
    const seen = found.length - unseen.length;
    if (counted.length <= this.domain.most * (seen + counted.length)) return null;
    return `${counted.length} of its ${seen + counted.length} words and signs are new`;
  }

  // One score for each step. Throws for a record that is too long.
  async score(problem, steps) {
    if (steps.length === 0) return [];
    const { ids, reads } = this.encode(problem, steps);
    if (ids.length > this.maxTokens) {
      throw new RangeError(`this is ${ids.length} tokens; the package scores up to ${this.maxTokens}`);
    }
    // keys and values that the package has of the first tokens are taken, not computed
    const { ids: first, kv } = this.opening;
    if (first.some((id, i) => ids[i] !== id) || reads[0] < first.length) {
      throw new Error("the record does not begin with the tokens whose keys and values the package has");
    }
    const rest = ids.slice(first.length);
    const width = rest.length % TILE === 1 ? rest.length + 1 : rest.length;
    const tokens = BigInt64Array.from({ length: width }, (_, i) => BigInt(rest[Math.min(i, rest.length - 1)]));
    const total = first.length + width;
    const feeds = {
      input_ids: new ort.Tensor("int64", tokens, [1, width]),
      reads: new ort.Tensor("int64", BigInt64Array.from(reads, (at) => BigInt(at - first.length)), [reads.length]),
      last_token: new ort.Tensor("int32", Int32Array.of(total - 1), [1]),
      total_tokens: new ort.Tensor("int32", Int32Array.of(total), []),
    };
    const { layers, kv_heads: heads, head_dim: size } = this.about;
    for (let layer = 0; layer < layers; layer++) {
      ["key", "value"].forEach((part, which) => {
        const past = kv[2 * layer + which];
        feeds[`past.${layer}.${part}`] = new ort.Tensor("float32", past, [1, heads, first.length, size]);
      });
    }
    const { logits } = await this.session.run(feeds, ["logits"]);
    return reads.map((_, index) => {
      const row = logits.data.subarray(index * this.recipe.logits, (index + 1) * this.recipe.logits);
      const score = softmax(row)[this.recipe.score.good];
      if (!Number.isFinite(score)) throw new Error("the model returned a number that is none");
      return score;
    });
  }

  // Index of the first step below the threshold, or null.
  firstError(scores) {
    const index = scores.findIndex((score) => score < this.threshold);
    return index < 0 ? null : index;
  }

  // Score the package's stored cases; the largest difference from torch's scores.
  async selfTest() {
    const { cases } = parse(await this.read("selftest.json"));
    let largest = 0;
    for (const { problem, steps, scores } of cases) {
      const found = await this.score(problem, steps);
      found.forEach((score, index) => {
        largest = Math.max(largest, Math.abs(score - scores[index]));
      });
    }
    const allowed = this.about.proof.self_test_tolerance;
    if (!(largest <= allowed)) {
      throw new Error(`this browser does not reproduce the model: off by ${largest}, allowed ${allowed}`);
    }
    return largest;
  }
}

function chosen(manifest, name) {
  const fits = ([, one]) => one.device === "cpu" && one.interface === "decoder";
  const found = Object.entries(manifest.variants).find((entry) =>
    fits(entry) && (name === null || entry[0] === name));
  if (!found) throw new PackageError(`no variant ${name ?? ""} for the CPU with a decoder graph`);
  return found[0];
}

// What is a digit to tokenizers in Python is any number of Unicode, such as ½ or ²; to the library
// for browsers (0.2.0) only 0 to 9. A Split says the same to both.
function withAllDigits(part) {
  if (part?.type === "Sequence") return { ...part, pretokenizers: part.pretokenizers.map(withAllDigits) };
  if (part?.type !== "Digits") return part;
  const Regex = part.individual_digits ? "\\p{N}" : "\\p{N}+";
  return { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
}

// The tokens that every record begins with, and their keys and values, one array for each layer's
// keys and values in turn. Both empty where a package has none.
function opening({ layers, kv_heads: heads, head_dim: size, prefix }, buffer) {
  const ids = prefix ? prefix.ids : [];
  const length = heads * ids.length * size;
  const all = new Float32Array(buffer ?? 0);
  if (all.length !== 2 * layers * length || !all.every(Number.isFinite)) {
    throw new PackageError("the keys and values of the package's first tokens are not as many as they must be");
  }
  return { ids, kv: Array.from({ length: 2 * layers }, (_, at) => all.slice(at * length, (at + 1) * length)) };
}

function checkedRecipe(recipe) {
  const parts = [...recipe.prompt, ...recipe.between, ...recipe.step];
  const plain = parts.every((part) =>
    part.text !== undefined || part.tokens !== undefined || (part.slot !== undefined && part.read === undefined));
  if (recipe.encode !== "separate" || recipe.score.kind !== "softmax" || !plain) {
    throw new PackageError(
      `recipe ${recipe.family} (${recipe.encode}, ${recipe.score.kind}) is not one that this example reads`);
  }
  return recipe;
}

function softmax(row) {
  const most = Math.max(...row);
  const powers = Array.from(row, (value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
