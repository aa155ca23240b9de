//! The quick example that asserts something is run, not only compiled.

#[path = "../examples/custom_policy.rs"]
#[allow(dead_code, unreachable_pub)]
mod custom_policy;

#[test]
fn custom_policy_learns() {
    custom_policy::main().unwrap_or_else(|error| panic!("{error}"));
}
