// The contents of the published package: files, exports and types.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const read = (path) => readFileSync(join(ROOT, path), "utf8");
const manifest = JSON.parse(read("package.json"));

test("the React build is a client component, as ESM and as CommonJS", () => {
  assert.match(read("dist/react.js"), /^"use client";/);
  assert.match(read("dist/react.cjs"), /^"use strict";"use client";/);
});

test("ESM and CommonJS have types of their own, and all exported files exist", () => {
  for (const [entry, kinds] of Object.entries(manifest.exports)) {
    if (typeof kinds === "string") continue;
    const paths = [kinds.import.types, kinds.import.default, kinds.require.types, kinds.require.default];
    assert.deepEqual(paths.map((path) => path.match(/\.(d\.)?c?[jt]s$/)[0]), [".d.ts", ".js", ".d.cts", ".cjs"], entry);
    for (const path of paths) assert.ok(existsSync(join(ROOT, path)), path);
  }
  assert.doesNotMatch(read("dist/index.d.cts"), /from "\.\/\w+\.js"/, "CommonJS types import no ESM types");
});

test("resolvers without support for exports find the React hooks", () => {
  const { main, module, types } = JSON.parse(read("react/package.json"));
  for (const path of [main, module, types]) assert.ok(existsSync(join(ROOT, "react", path)), path);
});

test("CommonJS can require both entries", () => {
  const require = createRequire(join(ROOT, "package.json"));
  assert.equal(typeof require("fanfare-client").connect, "function");
  assert.equal(typeof require("fanfare-client/react").FanfareProvider, "function");
});

test("the packed package is built, licensed and complete", () => {
  // `prepack` builds before a pack. The scripts are skipped here, because the tests run on a build.
  assert.match(manifest.scripts.prepack, /build/);
  const pack = ["pack", "--dry-run", "--json", "--ignore-scripts"];
  const packed = JSON.parse(execFileSync("npm", pack, { cwd: ROOT, encoding: "utf8" }));
  const files = (one) => one.files ?? Object.values(one).flatMap(({ files = [] }) => files);
  const paths = [packed].flat().flatMap(files).map(({ path }) => path);
  const expected = [
    "LICENSE-MIT", "LICENSE-APACHE", "README.md", "dist/index.js", "dist/share.js", "dist/react.cjs",
    "react/package.json",
  ];
  for (const path of expected) {
    assert.ok(paths.includes(path), `${path} in ${paths}`);
  }
});
