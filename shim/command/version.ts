/** The version of this build; the build script puts in the package's. */

declare const BUILD_VERSION: string | undefined;

export const VERSION: string = typeof BUILD_VERSION === "string" ? BUILD_VERSION : "0.0.0-source";
