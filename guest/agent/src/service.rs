//! The services `grpc.AgentService` and `grpc.Health`: decode, one call, encode.

use crate::agent::Agent;
use crate::confidential::requests::{AGENT, BINDING, DAMAGE, FILES, HEALTH};
use crate::copyfile::{copy_file, read_file};
use crate::error::{Code, Error, Result};
use crate::guest;
use crate::network;
use crate::proto::extensions::{
    BindPolicyRequest, ContainerDamageRequest, ContainerDamageResponse, ListRequest, NextDamageResponse,
    ReadFileRequest, ReadFileResponse,
};
use crate::proto::grpc::{
    health_check_response, AddArpNeighborsRequest, CloseStdinRequest, ExecProcessRequest, GetDiagnosticDataRequest,
    GetDiagnosticDataResponse, HealthCheckResponse, Interfaces, Metrics, OomEvent, PauseContainerRequest,
    ReadStreamRequest, ReadStreamResponse, ResumeContainerRequest, Routes, SetPolicyRequest, SignalProcessRequest,
    StartContainerRequest, StatsContainerRequest, StatsContainerResponse, TtyWinResizeRequest, UpdateContainerRequest,
    UpdateEphemeralMountsRequest, UpdateInterfaceRequest, UpdateRoutesRequest, VersionCheckResponse,
    WaitProcessRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse,
};
use crate::reaper;
use crate::ttrpc::{Handler, Request};
use crate::volumes;
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// The version that this agent reports; hosts compare its first number.
pub const AGENT_VERSION: &str = concat!("4.1.0-snp-", env!("CARGO_PKG_VERSION"));
/// The version of the protocol.
const API_VERSION: &str = "0.0.1";

/// Methods of the protocol that this agent knows and does not do, and why.
const NOT_DONE: [(&str, &str); 9] = [
    (
        "RemoveStaleVirtiofsShareMounts",
        "no file system is shared with the host",
    ),
    ("GetIPTables", "the guest's kernel has no iptables"),
    ("SetIPTables", "the guest's kernel has no iptables"),
    ("MemAgentMemcgSet", "there is no memory agent"),
    ("MemAgentCompactSet", "there is no memory agent"),
    ("MemHotplugByProbe", "memory is brought online as it is plugged in"),
    ("AddSwap", "the guest uses no swap device"),
    ("AddSwapPath", "the guest uses no swap device"),
    ("ResizeVolume", "volumes keep their size"),
];

impl Handler for Agent {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Result<Vec<u8>>>>> {
        Box::pin(async move {
            // The policy's thread looks at it as well.
            let request = Arc::new(request);
            let result = match self.guard.admit(&request).await {
                Ok(()) => self.serve(&request).await,
                Err(denied) => Err(denied),
            };
            if let Err(error) = &result {
                // The end of output is said by an error, and is none.
                if !request.method.starts_with("Read") {
                    crate::warn!("{}: {error}", request.method);
                }
            }
            result
        })
    }

    fn only_waits(&self, method: &str) -> bool {
        matches!(
            method,
            "WaitProcess" | "GetOOMEvent" | "NextDamage" | "ReadStdout" | "ReadStderr"
        )
    }
}

fn decode<M: Message + Default>(request: &Request) -> Result<M> {
    M::decode(request.payload.as_slice())
        .map_err(|error| Error::invalid(format!("{} has a malformed message: {error}", request.method)))
}

fn encode(message: impl Message) -> Result<Vec<u8>> {
    Ok(message.encode_to_vec())
}

fn health(request: &Request) -> Result<Vec<u8>> {
    match request.method.as_str() {
        "Check" => encode(HealthCheckResponse {
            status: health_check_response::ServingStatus::Serving as i32,
        }),
        "Version" => encode(VersionCheckResponse {
            grpc_version: API_VERSION.into(),
            agent_version: AGENT_VERSION.into(),
        }),
        other => Err(Error::new(
            Code::Unimplemented,
            format!("grpc.Health has no method {other:?}"),
        )),
    }
}

impl Agent {
    async fn serve(self: &Rc<Self>, request: &Request) -> Result<Vec<u8>> {
        match request.service.as_str() {
            AGENT => self.agent_service(request).await,
            HEALTH => health(request),
            FILES => self.files(request),
            DAMAGE => self.damage(request).await,
            BINDING => self.binding(request).await,
            other => Err(Error::new(
                Code::Unimplemented,
                format!("there is no service {other:?}"),
            )),
        }
    }

    async fn binding(&self, request: &Request) -> Result<Vec<u8>> {
        if request.method != "BindPolicy" {
            let text = format!("snp.v1.Binding has no method {:?}", request.method);
            return Err(Error::new(Code::Unimplemented, text));
        }
        let message: BindPolicyRequest = decode(request)?;
        self.guard.bind(&message.initdata).await?;
        crate::info!("the pod's policy is bound, and in force");
        Ok(Vec::new())
    }

    async fn damage(&self, request: &Request) -> Result<Vec<u8>> {
        match request.method.as_str() {
            "NextDamage" => encode(NextDamageResponse {
                text: self.storages.verity.damaged.next().await,
            }),
            "ContainerDamage" => {
                let message: ContainerDamageRequest = decode(request)?;
                let storages = self.container(&message.container_id)?.storages();
                encode(ContainerDamageResponse {
                    text: self.storages.damage(&storages).join("; "),
                })
            }
            other => Err(Error::new(
                Code::Unimplemented,
                format!("snp.v1.Damage has no method {other:?}"),
            )),
        }
    }

    fn files(&self, request: &Request) -> Result<Vec<u8>> {
        let run_dir = &self.options.run_dir;
        match request.method.as_str() {
            "ReadFile" => {
                let message: ReadFileRequest = decode(request)?;
                let data = read_file(run_dir, &message.path, message.max_bytes)?;
                encode(ReadFileResponse { data })
            }
            "Change" => volumes::change(run_dir, &decode(request)?).map(|()| Vec::new()),
            "List" => {
                let message: ListRequest = decode(request)?;
                encode(volumes::list(run_dir, &message.volume)?)
            }
            other => Err(Error::new(
                Code::Unimplemented,
                format!("snp.v1.Files has no method {other:?}"),
            )),
        }
    }

    async fn agent_service(self: &Rc<Self>, request: &Request) -> Result<Vec<u8>> {
        if self.ended() {
            return Err(Error::precondition(
                "the sandbox was destroyed: the guest is going down",
            ));
        }
        match request.method.as_str() {
            "CreateSandbox" | "DestroySandbox" | "CreateContainer" | "StartContainer" | "RemoveContainer"
            | "UpdateContainer" | "StatsContainer" | "PauseContainer" | "ResumeContainer" | "GetOOMEvent" => {
                self.life_cycle(request).await
            }
            "ExecProcess" | "SignalProcess" | "WaitProcess" | "WriteStdin" | "ReadStdout" | "ReadStderr"
            | "CloseStdin" | "TtyWinResize" => self.processes(request).await,
            _ => self.guest(request).await,
        }
    }

    async fn life_cycle(self: &Rc<Self>, request: &Request) -> Result<Vec<u8>> {
        match request.method.as_str() {
            "CreateSandbox" => self.create_sandbox(decode(request)?).await?,
            "DestroySandbox" => self.destroy_sandbox().await?,
            "CreateContainer" => self.create_container(decode(request)?).await?,
            "StartContainer" => {
                let message: StartContainerRequest = decode(request)?;
                let container = self.container(&message.container_id)?;
                let started = container.start().await;
                started.map_err(|error| self.with_damage(&container.storages(), error))?;
            }
            "RemoveContainer" => self.remove_container(decode(request)?).await?,
            "UpdateContainer" => {
                let message: UpdateContainerRequest = decode(request)?;
                self.container(&message.container_id)?
                    .cgroup
                    .update(&message.resources.unwrap_or_default())?;
            }
            "StatsContainer" => {
                let message: StatsContainerRequest = decode(request)?;
                let stats = self.container(&message.container_id)?.cgroup.stats();
                let network_stats = guest::network_stats();
                return encode(StatsContainerResponse {
                    cgroup_stats: Some(stats),
                    network_stats,
                });
            }
            "PauseContainer" => {
                let message: PauseContainerRequest = decode(request)?;
                self.container(&message.container_id)?.freeze(true).await?;
            }
            "ResumeContainer" => {
                let message: ResumeContainerRequest = decode(request)?;
                self.container(&message.container_id)?.freeze(false).await?;
            }
            _ => {
                return encode(OomEvent {
                    container_id: self.ooms.next().await,
                })
            }
        }
        Ok(Vec::new())
    }

    async fn processes(self: &Rc<Self>, request: &Request) -> Result<Vec<u8>> {
        match request.method.as_str() {
            "ExecProcess" => {
                let message: ExecProcessRequest = decode(request)?;
                let container = self.container(&message.container_id)?;
                let executed = container.exec(self, message).await;
                executed.map_err(|error| self.with_damage(&container.storages(), error))?;
            }
            "SignalProcess" => {
                let message: SignalProcessRequest = decode(request)?;
                let number = i32::try_from(message.signal).unwrap_or(i32::MAX);
                self.container(&message.container_id)?
                    .signal(&message.exec_id, number)?;
            }
            "WaitProcess" => {
                let message: WaitProcessRequest = decode(request)?;
                let exit = self.process(&message.container_id, &message.exec_id)?.exit.clone();
                return encode(WaitProcessResponse {
                    status: reaper::wait(exit).await?,
                });
            }
            "WriteStdin" => {
                let message: WriteStreamRequest = decode(request)?;
                self.process(&message.container_id, &message.exec_id)?
                    .write(&message.data)
                    .await?;
                return encode(WriteStreamResponse {
                    len: message.data.len() as u32,
                });
            }
            "ReadStdout" | "ReadStderr" => {
                let message: ReadStreamRequest = decode(request)?;
                let process = self.process(&message.container_id, &message.exec_id)?;
                let data = process.read(request.method == "ReadStderr", message.len).await?;
                return encode(ReadStreamResponse { data });
            }
            "CloseStdin" => {
                let message: CloseStdinRequest = decode(request)?;
                self.process(&message.container_id, &message.exec_id)?.close_stdin();
            }
            _ => {
                let message: TtyWinResizeRequest = decode(request)?;
                let process = self.process(&message.container_id, &message.exec_id)?;
                process.resize(message.row, message.column)?;
            }
        }
        Ok(Vec::new())
    }

    async fn guest(self: &Rc<Self>, request: &Request) -> Result<Vec<u8>> {
        match request.method.as_str() {
            "GetGuestDetails" => return encode(guest::details(&decode(request)?, self.options.init)),
            "UpdateInterface" => {
                let message: UpdateInterfaceRequest = decode(request)?;
                let wanted = message
                    .interface
                    .ok_or_else(|| Error::invalid("the request has no interface"))?;
                return encode(network::update_interface(&wanted).await?);
            }
            "UpdateRoutes" => {
                let message: UpdateRoutesRequest = decode(request)?;
                return encode(Routes {
                    routes: network::update_routes(&message.routes.unwrap_or_default().routes)?,
                });
            }
            "ListInterfaces" => {
                return encode(Interfaces {
                    interfaces: network::list_interfaces()?,
                })
            }
            "ListRoutes" => {
                return encode(Routes {
                    routes: network::list_routes()?,
                })
            }
            "AddARPNeighbors" => {
                let message: AddArpNeighborsRequest = decode(request)?;
                network::add_neighbours(&message.neighbors.unwrap_or_default().arp_neighbors)?;
            }
            "CopyFile" => copy_file(&self.options.run_dir, &decode(request)?)?,
            "SetPolicy" => {
                let message: SetPolicyRequest = decode(request)?;
                self.guard.set_policy(message.policy).await?;
            }
            "SetGuestDateTime" => guest::set_time(&decode(request)?)?,
            "ReseedRandomDev" => guest::reseed(&decode(request)?)?,
            "OnlineCPUMem" => guest::bring_online(&decode(request)?).await?,
            "UpdateEphemeralMounts" => {
                let message: UpdateEphemeralMountsRequest = decode(request)?;
                guest::remount(&message.storages)?;
            }
            "GetVolumeStats" => return encode(guest::volume_stats(&decode(request)?)?),
            "GetMetrics" => {
                return encode(Metrics {
                    metrics: guest::metrics(),
                })
            }
            "GetDiagnosticData" => {
                let message: GetDiagnosticDataRequest = decode(request)?;
                return encode(GetDiagnosticDataResponse {
                    data: guest::diagnostics(&message.log_type)?,
                });
            }
            other => {
                let why = NOT_DONE.iter().find_map(|(name, why)| (*name == other).then_some(*why));
                let text = match why {
                    Some(why) => format!("{other} is not supported by this agent: {why}"),
                    None => format!("grpc.AgentService has no method {other:?}"),
                };
                return Err(Error::new(Code::Unimplemented, text));
            }
        }
        Ok(Vec::new())
    }
}
