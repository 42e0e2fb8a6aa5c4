// Checks the syntax of the TypeScript in the documents.

import { transform } from "esbuild";
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = new URL("../../../", import.meta.url);
const DOCS = readdirSync(new URL("docs", ROOT)).map((name) => `docs/${name}`);
const DOCUMENTS = ["README.md", "clients/typescript/README.md", ...DOCS];

test("TypeScript in the documents parses", async () => {
  let blocks = 0;
  for (const name of DOCUMENTS.filter((name) => name.endsWith(".md"))) {
    const text = readFileSync(fileURLToPath(new URL(name, ROOT)), "utf8");
    for (const [, language, code] of text.matchAll(/^```(ts|tsx)\n(.*?)^```$/gms)) {
      await transform(code, { loader: language, sourcefile: name, logLevel: "silent" });
      blocks++;
    }
  }
  assert.ok(blocks > 0, "no document contains TypeScript");
});
