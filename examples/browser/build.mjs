// Put everything that the page needs into one folder of plain files: node build.mjs [PACKAGE] [OUT]

import { cp, mkdir, rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";

const here = path.dirname(fileURLToPath(import.meta.url));
const built_in = path.join(here, "../../runtime/prm_edge_runtime/default_package");
const [given = built_in, out = path.join(here, "dist")] = process.argv.slice(2);
const modules = path.join(here, "node_modules");
const VENDOR = [
  "onnxruntime-web/dist/ort.wasm.min.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
  "@huggingface/tokenizers/dist/tokenizers.min.mjs",
];

await rm(out, { recursive: true, force: true });
await mkdir(path.join(out, "vendor"), { recursive: true });
for (const file of ["index.html", "page.css", "page.js", "prm.js"]) {
  await cp(path.join(here, file), path.join(out, file));
}
for (const file of VENDOR) {
  await cp(path.join(modules, file), path.join(out, "vendor", path.basename(file)));
}
await cp(given, path.join(out, "package"), { recursive: true, dereference: true });
console.log(`built ${out}; serve it with: python3 -m http.server -b 127.0.0.1 -d ${out} 8000`);
