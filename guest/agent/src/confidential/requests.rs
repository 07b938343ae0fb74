//! Requests as a policy sees them: the name of the message is the name of the rule, the message's fields are its input, with the names of the `.proto` files, as Kata's
//! agent has them. All fields are there: a message that is absent is null, an absent text empty, bytes are lists of numbers.

use crate::error::{Error, Result};
use crate::proto::extensions::{
    change::What, BindPolicyRequest, ChangeRequest, ContainerDamageRequest, ListRequest, NextDamageRequest,
    ReadFileRequest,
};
use crate::proto::grpc::*;
use crate::ttrpc::Request;
use prost::Message;
use serde::Serialize;
use serde_json::{json, Value};

pub const AGENT: &str = "grpc.AgentService";
pub const HEALTH: &str = "grpc.Health";
pub const FILES: &str = "snp.v1.Files";
pub const DAMAGE: &str = "snp.v1.Damage";
pub const BINDING: &str = "snp.v1.Binding";

type Read = fn(&[u8]) -> Result<Value>;

macro_rules! requests {
    ($($service:ident $method:literal $rule:literal $read:expr;)*) => {
        /// Service, method, rule, and how the input is made.
        const REQUESTS: &[(&str, &str, &str, Read)] = &[$(($service, $method, $rule, $read)),*];
    };
}

requests! {
    AGENT "CreateContainer" "CreateContainerRequest" fields::<CreateContainerRequest>;
    AGENT "StartContainer" "StartContainerRequest" fields::<StartContainerRequest>;
    AGENT "RemoveContainer" "RemoveContainerRequest" fields::<RemoveContainerRequest>;
    AGENT "ExecProcess" "ExecProcessRequest" fields::<ExecProcessRequest>;
    AGENT "SignalProcess" "SignalProcessRequest" fields::<SignalProcessRequest>;
    AGENT "WaitProcess" "WaitProcessRequest" fields::<WaitProcessRequest>;
    AGENT "UpdateContainer" "UpdateContainerRequest" fields::<UpdateContainerRequest>;
    AGENT "UpdateEphemeralMounts" "UpdateEphemeralMountsRequest" fields::<UpdateEphemeralMountsRequest>;
    AGENT "StatsContainer" "StatsContainerRequest" fields::<StatsContainerRequest>;
    AGENT "PauseContainer" "PauseContainerRequest" fields::<PauseContainerRequest>;
    AGENT "ResumeContainer" "ResumeContainerRequest" fields::<ResumeContainerRequest>;
    AGENT "RemoveStaleVirtiofsShareMounts" "RemoveStaleVirtiofsShareMountsRequest" fields::<RemoveStaleVirtiofsShareMountsRequest>;
    AGENT "GetDiagnosticData" "GetDiagnosticDataRequest" fields::<GetDiagnosticDataRequest>;
    AGENT "WriteStdin" "WriteStreamRequest" write_stream;
    AGENT "ReadStdout" "ReadStreamRequest" fields::<ReadStreamRequest>;
    AGENT "ReadStderr" "ReadStreamRequest" fields::<ReadStreamRequest>;
    AGENT "CloseStdin" "CloseStdinRequest" fields::<CloseStdinRequest>;
    AGENT "TtyWinResize" "TtyWinResizeRequest" fields::<TtyWinResizeRequest>;
    AGENT "UpdateInterface" "UpdateInterfaceRequest" fields::<UpdateInterfaceRequest>;
    AGENT "UpdateRoutes" "UpdateRoutesRequest" fields::<UpdateRoutesRequest>;
    AGENT "ListInterfaces" "ListInterfacesRequest" fields::<ListInterfacesRequest>;
    AGENT "ListRoutes" "ListRoutesRequest" fields::<ListRoutesRequest>;
    AGENT "AddARPNeighbors" "AddARPNeighborsRequest" fields::<AddArpNeighborsRequest>;
    AGENT "GetIPTables" "GetIPTablesRequest" fields::<GetIpTablesRequest>;
    AGENT "SetIPTables" "SetIPTablesRequest" fields::<SetIpTablesRequest>;
    AGENT "GetMetrics" "GetMetricsRequest" fields::<GetMetricsRequest>;
    AGENT "MemAgentMemcgSet" "MemAgentMemcgConfig" fields::<MemAgentMemcgConfig>;
    AGENT "MemAgentCompactSet" "MemAgentCompactConfig" fields::<MemAgentCompactConfig>;
    AGENT "CreateSandbox" "CreateSandboxRequest" fields::<CreateSandboxRequest>;
    AGENT "DestroySandbox" "DestroySandboxRequest" fields::<DestroySandboxRequest>;
    AGENT "OnlineCPUMem" "OnlineCPUMemRequest" fields::<OnlineCpuMemRequest>;
    AGENT "ReseedRandomDev" "ReseedRandomDevRequest" fields::<ReseedRandomDevRequest>;
    AGENT "GetGuestDetails" "GuestDetailsRequest" fields::<GuestDetailsRequest>;
    AGENT "MemHotplugByProbe" "MemHotplugByProbeRequest" fields::<MemHotplugByProbeRequest>;
    AGENT "SetGuestDateTime" "SetGuestDateTimeRequest" fields::<SetGuestDateTimeRequest>;
    AGENT "CopyFile" "CopyFileRequest" copy_file;
    AGENT "GetOOMEvent" "GetOOMEventRequest" fields::<GetOomEventRequest>;
    AGENT "AddSwap" "AddSwapRequest" fields::<AddSwapRequest>;
    AGENT "AddSwapPath" "AddSwapPathRequest" fields::<AddSwapPathRequest>;
    AGENT "GetVolumeStats" "VolumeStatsRequest" fields::<VolumeStatsRequest>;
    AGENT "ResizeVolume" "ResizeVolumeRequest" fields::<ResizeVolumeRequest>;
    AGENT "SetPolicy" "SetPolicyRequest" fields::<SetPolicyRequest>;
    FILES "ReadFile" "ReadFileRequest" fields::<ReadFileRequest>;
    FILES "Change" "ChangeRequest" change;
    FILES "List" "ListRequest" fields::<ListRequest>;
    DAMAGE "NextDamage" "NextDamageRequest" fields::<NextDamageRequest>;
    DAMAGE "ContainerDamage" "ContainerDamageRequest" fields::<ContainerDamageRequest>;
    BINDING "BindPolicy" "BindPolicyRequest" bind_policy;
}

/// The rule and its input for a request; none for one that this agent does not know.
///
/// # Errors
/// The message is malformed.
pub fn input(request: &Request) -> Result<Option<(&'static str, Value)>> {
    let known = REQUESTS
        .iter()
        .find(|(service, method, ..)| *service == request.service && *method == request.method);
    let Some((_, method, rule, read)) = known else {
        return Ok(None);
    };
    let input =
        read(&request.payload).map_err(|error| Error::invalid(format!("{method} has a malformed message: {error}")))?;
    Ok(Some((rule, input)))
}

fn decoded<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|error| Error::invalid(error.to_string()))
}

fn fields<M: Message + Default + Serialize>(payload: &[u8]) -> Result<Value> {
    described(&decoded::<M>(payload)?)
}

fn described(message: &impl Serialize) -> Result<Value> {
    serde_json::to_value(message).map_err(|error| Error::internal(error.to_string()))
}

/// What is in a file is no matter of a policy, and large.
fn copy_file(payload: &[u8]) -> Result<Value> {
    let mut message: CopyFileRequest = decoded(payload)?;
    message.data.clear();
    described(&message)
}

fn write_stream(payload: &[u8]) -> Result<Value> {
    let mut message: WriteStreamRequest = decoded(payload)?;
    message.data.clear();
    described(&message)
}

fn bind_policy(payload: &[u8]) -> Result<Value> {
    let mut message: BindPolicyRequest = decoded(payload)?;
    message.initdata.clear();
    described(&message)
}

/// A change says what it is; paths and targets are texts.
fn change(payload: &[u8]) -> Result<Value> {
    let message: ChangeRequest = decoded(payload)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let changes = message.changes.iter().map(|change| {
        let (what, target) = match &change.what {
            Some(What::Folder(_)) => ("folder", None),
            Some(What::File(_)) => ("file", None),
            Some(What::Link(link)) => ("link", Some(text(&link.target))),
            Some(What::HardLink(from)) => ("hard_link", Some(text(from))),
            Some(What::Rename(from)) => ("rename", Some(text(from))),
            Some(What::Remove(_)) => ("remove", None),
            None => ("", None),
        };
        json!({ "path": text(&change.path), "what": what, "target": target })
    });
    Ok(json!({ "volume": message.volume, "changes": changes.collect::<Vec<_>>() }))
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
