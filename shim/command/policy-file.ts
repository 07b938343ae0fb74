/** Policies as files: Rego, or in what carries one. */

import { ShimError } from "../base/errors.ts";
import { decodeInitdata, INITDATA_ANNOTATION, POLICY_ENTRY } from "../policy/initdata.ts";

/**
 * Reads a policy: Rego, a text with an annotation of initdata, or the annotation's value.
 * @throws ShimError `policy.input`, `initdata.invalid`
 */
export function policyIn(name: string, text: string): { readonly name: string; readonly text: string } {
	if (/^\s*package\s/mu.test(text)) return { name, text };
	const packed = new RegExp(`${INITDATA_ANNOTATION.replaceAll(".", "\\.")}["']?\\s*[:=]\\s*["']?(?<value>[A-Za-z0-9+/=]+)`, "u").exec(text);
	const value = packed?.groups?.["value"] ?? text.trim();
	if (!/^[A-Za-z0-9+/=\s]+$/u.test(value)) throw new ShimError("policy.input", `${name} is neither Rego nor has an annotation of initdata`);
	const found = decodeInitdata(value).data[POLICY_ENTRY];
	if (found === undefined) throw new ShimError("policy.input", `${name}: the initdata has no ${POLICY_ENTRY}`);
	return { name: `${name} (${POLICY_ENTRY})`, text: found };
}
