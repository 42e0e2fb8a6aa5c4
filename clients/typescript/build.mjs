// Bundles each entry as ESM and CommonJS into dist/, and copies the types, which tsc has written there, for CommonJS.

import { build } from "esbuild";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const options = {
  bundle: true, minify: true, sourcemap: true, target: "es2022", platform: "neutral", legalComments: "none",
};
const external = ["react", "react/jsx-runtime", "fanfare-client", "./share.js"];
for (const [entry, name] of [["src/index.ts", "index"], ["src/react.tsx", "react"], ["src/share.ts", "share"]]) {
  for (const [format, extension] of [["esm", "js"], ["cjs", "cjs"]]) {
    const outfile = `dist/${name}.${extension}`;
    await build({ ...options, external, jsx: "automatic", entryPoints: [entry], format, outfile });
  }
}

for (const file of readdirSync("dist").filter((file) => file.endsWith(".d.ts"))) {
  const types = readFileSync(`dist/${file}`, "utf8").replace(/(["']\.\/[\w-]+)\.js(["'])/g, "$1.cjs$2");
  writeFileSync(`dist/${file.replace(/\.ts$/, ".cts")}`, types);
}
