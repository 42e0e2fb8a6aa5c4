// Bundles each entry as ESM and CJS into dist/; tsc writes the types there.

import { build } from "esbuild";
import { rmSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
const options = { bundle: true, minify: true, sourcemap: true, target: "es2022", platform: "neutral", legalComments: "none" };
for (const [entry, name] of [["src/index.ts", "index"], ["src/react.tsx", "react"]]) {
  const external = ["react", "react/jsx-runtime", "fanfare-client"];
  for (const [format, extension] of [["esm", "js"], ["cjs", "cjs"]]) {
    await build({ ...options, external, jsx: "automatic", entryPoints: [entry], format, outfile: `dist/${name}.${extension}` });
  }
}
