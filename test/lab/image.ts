/** Writes the image of test/lab: `node --import tsx test/lab/image.ts FOLDER` prints the path of the tar file. */
import { buildBusyboxImage } from "../support/image.ts";

const [folder] = process.argv.slice(2);
if (folder === undefined) {
	console.error("usage: image.ts FOLDER");
	process.exit(2);
}
console.log((await buildBusyboxImage(folder)).file);
