/** The initdata of guests that wait for their pod (docs/adr/0012): its digest is their HOST_DATA. The guest's agent has the same bytes (`guest/agent/src/confidential/bind-only.toml`). */
export const BIND_ONLY_TOML = `version = "0.1.0"
algorithm = "sha256"

[data]
"policy.rego" = '''
# A guest that waits for its pod (docs/adr/0012): one thing is allowed, to bind one policy, once. The guest's agent
# knows this initdata by its every byte, and denies all else until a policy is bound and for ever what that denies.
package agent_policy

BindPolicyRequest := true
'''
`;
