// Reads an AsyncAPI document with the parser that AsyncAPI publishes: `node check.mjs FILE`. Exit code 1 when it finds
// an error; advice on style is only counted.
import { Parser, fromFile } from "@asyncapi/parser";

const SEVERITY_ERROR = 0;
const [file] = process.argv.slice(2);
const { document, diagnostics } = await fromFile(new Parser(), file).parse();
const errors = diagnostics.filter(({ severity }) => severity === SEVERITY_ERROR);
for (const { code, path, message } of errors) {
  console.error(`${file}: ${path.join(".")}: ${message} (${code})`);
}
if (errors.length > 0 || document === undefined) {
  process.exit(1);
}
const count = [document.channels().length, document.operations().length];
console.log(`${file}: ${count[0]} channels, ${count[1]} operations, no error, ${diagnostics.length} pieces of advice`);
